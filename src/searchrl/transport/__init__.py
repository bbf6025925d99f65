"""HTTP to services that may fail: retries, one breaker a service, errors of one type."""
