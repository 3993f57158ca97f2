"""Encrypted sums: quantise, pack, mask and encrypt an update; add; open only the sum."""
