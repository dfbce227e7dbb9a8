"""Parameters that every rank holds and keeps equal."""
