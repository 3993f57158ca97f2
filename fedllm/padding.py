"""How wide batches of token sequences are."""

# Sequences are padded to a multiple of so many tokens.
PAD_MULTIPLE = 8
