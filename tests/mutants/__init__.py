"""Small faults put into the program at random, to see whether a test notices (`make mutants`)."""
