"""A test that a site runs on its own installation before it trusts an epsilon."""
