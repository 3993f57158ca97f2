"""A run's model and what it was made smaller to, side by side on the same records."""
