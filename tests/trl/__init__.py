"""Tests against TRL itself; they run in an environment of their own: ``make test-trl``."""
