"""How what the ranks send becomes its sum on every rank."""
