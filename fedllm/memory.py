"""Which errors say that memory could not be had.

Where a limit or a strict system lets allocations fail, a process goes on with such an error. It
says what lay in memory at that moment, and nothing of the record that was being computed.
"""

from __future__ import annotations

import errno

import torch

from fedllm.errors import ShortOfMemoryError

# PyTorch and what it is built on say it in words alone, except of a GPU's own allocator.
_WORDS = (
    "can't allocate memory",
    "Cannot allocate memory",
    "not enough memory",
    "out of memory",
    "std::bad_alloc",
    "ALLOC_FAILED",
    "could not create a memory object",
    "could not execute a primitive",
)


def lacks_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory could not be had: the machine's, or a GPU's."""
    if isinstance(error, MemoryError | ShortOfMemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)
