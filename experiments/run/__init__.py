"""Runs the cells of experiments."""
