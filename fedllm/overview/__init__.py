"""A site as its own people see it: what runs, what was sent, the budget, the policy.

On a page and in a terminal, from the site's ledger, its policy and what its service writes down; no
record is read for it, and none of the kit's keys.
"""
