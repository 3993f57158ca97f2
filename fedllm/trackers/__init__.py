"""What a run tells, for the trackers of others: figures that were released, and nothing of records.

Each is an observer of runs (`fedllm.runs.observer`) and an extra of pyproject.toml.
"""
