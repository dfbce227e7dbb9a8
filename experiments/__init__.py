"""Floor 3: benchmarks, declared experiments, the network lab and the report."""
