"""Audits: what a run did, in a report a data-protection officer can read, and attacks on it."""
