"""The demo: made-up hospitals, a small model, and the whole story in a few minutes."""
