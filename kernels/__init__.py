"""Floor 0: the arithmetic of the trainer. Optimizer rules, schedules, losses and the loops that drive them."""
