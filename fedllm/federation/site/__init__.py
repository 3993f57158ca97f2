"""A site: what it checks, computes, remembers, charges and answers."""
