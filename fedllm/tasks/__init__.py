"""What a task is: everything that depends on what a model is trained for.

One file a task. `task_of` turns the name in a run's configuration into the `LearningTask`
that answers all questions about it; nobody else looks at the name. Importing this package
imports no torch: columns are checked before it loads.
"""

from fedllm.tasks.base import LearningTask
from fedllm.tasks.registry import task_for_base, task_of

__all__ = ["LearningTask", "task_for_base", "task_of"]
