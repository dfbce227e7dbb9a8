"""The parameter server: server ranks hold ranges of the parameters and step them; workers push gradients and pull values."""
