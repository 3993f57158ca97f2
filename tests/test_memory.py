import errno

import numpy as np
import pytest
import torch

from fedllm.errors import FedllmError, ShortOfMemoryError
from fedllm.memory import lacks_memory

# More than any machine's addresses reach.
FAR_TOO_MANY = 1 << 62


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.empty(FAR_TOO_MANY, dtype=torch.uint8),
        lambda: np.zeros(FAR_TOO_MANY, dtype=np.uint8),
        lambda: bytearray(FAR_TOO_MANY),
    ],
)
def test_what_allocators_say_on_this_machine(allocate):
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        allocate()
    assert lacks_memory(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        ShortOfMemoryError("too little"),
        torch.OutOfMemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_a_lack_of_memory(error):
    assert lacks_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("out of memory"),
        OSError(errno.ENOSPC, "No space left on device"),
        IndexError(),
        FedllmError("the memory is out of order"),
        KeyboardInterrupt(),
    ],
)
def test_other_errors(error):
    assert not lacks_memory(error)
