"""Models made smaller and faster: pruned, rounded, taught to smaller ones, packed; and compared."""
