"""What is asked: when two texts are the same, and how a prompt stands behind its context.

The one place for both: who ranks answers at a site, who reads the rankings into a run and who asks
the model afterwards must mean the same by a prompt, since all that is said of one is one unit.
"""

from __future__ import annotations

from fedllm.data.spelling import seen


def event_key(prompt: str, context: str) -> tuple[str, str]:
    """Return what all that is said of one prompt and context has in common.

    White space, invisible characters and forms of Unicode tell no two apart.
    """
    return seen(prompt), seen(context)


def question(prompt: str, context: str) -> str:
    """Return what a model reads: the context, an empty line, the prompt.

    A context of white space alone is none.
    """
    return f"{context}\n\n{prompt}" if seen(context) else prompt
