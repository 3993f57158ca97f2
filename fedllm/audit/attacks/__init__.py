"""Attacks on a run or its configuration: canaries, membership, extraction."""
