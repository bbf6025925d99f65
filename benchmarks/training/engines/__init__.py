"""Engines under measurement, each a program that does an order and tells of its steps."""
