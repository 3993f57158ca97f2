"""``python -m fedllm`` is the command ``fedllm``."""

from fedllm.cli import main

main()
