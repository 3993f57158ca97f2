"""One round on both sides, the messages between them, and the engines that carry these."""

import os

# Before anything here imports flwr or ray: no usage statistics leave a hospital's network.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
