"""What happened to records, as events, and what they cost."""
