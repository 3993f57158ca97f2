"""A released model taught by a released reward model, on public prompts, at the coordinator."""
