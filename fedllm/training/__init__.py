"""Training at one site, evaluation, and the optimiser at the coordinator."""
