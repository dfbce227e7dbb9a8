"""Optimizer rules, schedules, and the steps that drive them."""
