"""One round on both sides, the messages between them, and the engines that carry these."""
