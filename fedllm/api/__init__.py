"""What ``import fedllm`` offers to notebooks and programs: the same code as the commands.

Nothing here loads torch when it is imported. What goes wrong is a `fedllm.FedllmError`, which says
what to do.
"""

from fedllm.environment import set_defaults

# Before whatever is imported on the way.
set_defaults()
