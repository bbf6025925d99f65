"""Tests against verl itself; they run in an environment of their own: ``make test-verl``."""
