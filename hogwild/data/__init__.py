"""Readers of data files, the one form of all data, and its transforms."""
