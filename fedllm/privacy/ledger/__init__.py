"""The ledger: what a data set was charged, on disk, chained, signed, checked."""
