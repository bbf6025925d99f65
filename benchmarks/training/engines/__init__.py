"""Engines under measurement, each a program of its own that does an order and tells its steps."""
