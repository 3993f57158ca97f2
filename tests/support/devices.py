"""Devices that tests can have models on: one that is pretended, and a GPU where there is one."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from support.pretend_device import pretended

NO_GPU = "PyTorch finds no GPU on this machine"
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_GPU)
# The same tests on both.
DEVICES = ["pretended", pytest.param("cuda", marks=on_a_gpu)]
# Of a run's configuration; the pretended device answers to the same name.
ENGINE = {"device": "cuda"}


def models_on(device: str) -> AbstractContextManager[None]:
    """Let models that ask for a GPU have one inside, or what is pretended to be one."""
    return pretended() if device == "pretended" else nullcontext()
