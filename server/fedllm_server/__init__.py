"""What runs at the coordinator: the ServerApp, the loop of rounds, checkpoints, simulation."""
