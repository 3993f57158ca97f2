"""Records from files and databases, dealt out to sites and turned into tokens."""
