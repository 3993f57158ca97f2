"""The round key in its own process: same answers, and its death is an error, not a crash."""

import os
import pickle
import signal

import numpy as np
import pytest

from fedllm.encryption.key_process import SecretKeyProcess
from fedllm.encryption.plan import make_plan
from fedllm.encryption.schemes import PublicRoundKey
from fedllm.errors import PeerError, RefusedError

PLAN = make_plan("bfv", 8, 4, 100, False)
SLOTS = np.arange(PLAN.slots, dtype=np.uint64)


def test_opens_one_sum_and_ends_when_wiped():
    key = SecretKeyProcess.generate(PLAN)
    try:
        blob = PublicRoundKey.from_bytes(PLAN, key.public_context()).encrypt(SLOTS)
        with pytest.raises(PeerError, match="bytes of ciphertext"):
            key.decrypt_sum(blob[:-1])
        assert (key.decrypt_sum(blob) == SLOTS).all()
        with pytest.raises(RefusedError, match="already opened"):
            key.decrypt_sum(blob)
        assert "hidden" in repr(key)
        with pytest.raises(TypeError):
            pickle.dumps(key)
    finally:
        process = key._process
        key.wipe()
    assert not process.is_alive()
    with pytest.raises(RefusedError, match="wiped"):
        key.decrypt_sum(blob)


def test_death_in_the_middle_of_a_sum_is_an_error():
    key = SecretKeyProcess(PLAN, timeout_s=600)
    blob = PublicRoundKey.from_bytes(PLAN, key.public_context()).encrypt(SLOTS)
    # Stopped, it takes the request but cannot answer before it is killed.
    os.kill(key._process.pid, signal.SIGSTOP)
    key._pipe.send_bytes(b"")
    os.kill(key._process.pid, signal.SIGKILL)
    key._process.is_alive = lambda: True
    with pytest.raises(PeerError, match="died over a sum"):
        key.decrypt_sum(blob)


def test_sum_that_takes_too_long_is_an_error():
    key = SecretKeyProcess(PLAN, timeout_s=600)
    blob = PublicRoundKey.from_bytes(PLAN, key.public_context()).encrypt(SLOTS)
    key._timeout_s = 0.2
    os.kill(key._process.pid, signal.SIGSTOP)
    with pytest.raises(PeerError, match="not opened within"):
        key.decrypt_sum(blob[:1000])
    assert not key._process.is_alive()
