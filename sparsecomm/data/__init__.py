"""Readers of images and text."""
