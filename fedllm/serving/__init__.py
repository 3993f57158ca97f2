"""Using what a run released: asking it, and serving it."""
