"""Lock files between processes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fedllm.errors import ConfigError
from fedllm.locks import exclusive, in_turn, is_held

HOLDER = """
import sys
from pathlib import Path
from fedllm.locks import in_turn
with in_turn(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.lock"


@pytest.fixture
def holder(path):
    """Another process that holds the lock until its standard input is closed."""
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_lock_ends_with_its_block(path):
    assert not is_held(path)
    for _ in range(2):
        with exclusive(path, "busy", "wait"):
            assert is_held(path)
        assert not is_held(path)


def test_what_another_process_holds_is_refused_with_the_given_words(path, holder):
    assert is_held(path)
    with pytest.raises(ConfigError, match=r"the folder is taken") as caught:  # noqa: SIM117
        with exclusive(path, "the folder is taken", "choose another"):
            pytest.fail("the lock was given twice")
    assert caught.value.remedy == "choose another"


def test_the_system_frees_the_lock_of_a_process_that_is_killed(path, holder):
    holder.kill()
    holder.wait()
    assert not is_held(path)
    with exclusive(path, "busy", "wait"):
        pass


def test_in_turn_waits_until_the_other_process_is_done(path, holder):
    waiter = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    holder.stdin.close()
    holder.wait()
    # The pipe closes without a word if the second process gave up instead of waiting.
    assert waiter.stdout.readline() == b"held\n"
    assert is_held(path)
    waiter.communicate()
    assert not is_held(path)


def test_an_error_in_the_block_frees_the_lock_and_comes_through(path):
    with pytest.raises(OSError, match="mine"), exclusive(path, "busy", "wait"):
        raise OSError("mine")
    with pytest.raises(ValueError, match="mine"), in_turn(path):
        raise ValueError("mine")
    assert not is_held(path)
