"""Problem families: what each knows of its data, parameters and predictions."""
