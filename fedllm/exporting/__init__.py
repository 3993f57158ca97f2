"""What a run trained, handed over: formats that tools without fedllm read, and the model card."""
