"""The key authority: opens the sum of one round, once, and keeps a log of it."""
