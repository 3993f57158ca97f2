"""From somebody's own records to a first configuration: look, guess, split, write.

All of it reads records on the machine of whoever has them. Nothing leaves, no text of them is
printed, and what is written into a configuration are names of columns, counts, and the labels.
"""
