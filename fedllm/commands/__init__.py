"""The commands of ``fedllm``: parse, call, print. Heavy imports stay inside functions."""
