"""Experiments as data: their files, grids and data sets."""
