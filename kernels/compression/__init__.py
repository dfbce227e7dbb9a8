"""Selection of the large gradients, and the codes of sparse messages."""
