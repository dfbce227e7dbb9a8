"""Programs that only experiments run."""
