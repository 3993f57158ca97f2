"""The report of a run: one page that loads nothing from anywhere."""
