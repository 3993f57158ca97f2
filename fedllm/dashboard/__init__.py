"""A page of runs for people: what run folders say, shown live, on loopback.

It reads what runs write anyway, each line once however many watch; no record and no weight.
"""
