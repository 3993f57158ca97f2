"""What carries messages: Flower's grids, nodes and SuperLink. Only here are its private modules."""
