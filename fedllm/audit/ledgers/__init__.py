"""Epsilons of ledgers and run folders, recomputed by accountants of other authors."""
