"""The coordinator: who takes part, and one round from order to opened sum."""
