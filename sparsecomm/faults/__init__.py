"""Ranks that fail: how it is noticed, and what is left behind."""
