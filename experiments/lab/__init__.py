"""A network on one machine."""
