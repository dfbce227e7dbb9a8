"""How workers share parameters: modes, replicas, merging, and the division of work."""
