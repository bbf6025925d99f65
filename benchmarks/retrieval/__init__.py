"""Measurements of retrieval."""
