"""Differential privacy: noise, clipping, accounting, and the ledger of what was spent."""
