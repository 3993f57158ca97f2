"""The run folder: the names of its files, and one reader and one writer for each of them.

Nothing here imports torch, so that a command can look at a folder before it loads anything.
"""
