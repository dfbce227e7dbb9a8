"""Loops over rows of sparse data."""
