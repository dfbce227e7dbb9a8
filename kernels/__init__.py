"""Floor 0: the arithmetic of the trainer. Optimizer rules, schedules, losses and the loops that drive them."""

# Another distribution on PyPI is also named `kernels`; hogwild and sparsecomm look for this marker.
HOGWILD_SPARSECOMM = True
