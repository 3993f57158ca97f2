"""What the parties of a round say to each other, sign and compute alike."""
