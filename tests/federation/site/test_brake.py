"""Pause and end, as files: their absence alone lets a round begin."""

from __future__ import annotations

import fcntl
import os
import re
import threading
import time

import pytest

from fedllm.errors import PausedError, StorageError
from fedllm.federation.protocol.refusals import Refusal
from fedllm.federation.site.brake import LOCK, Brake, Held
from fedllm.locks import in_turn


@pytest.fixture
def brake(tmp_path):
    return Brake(tmp_path)


@pytest.fixture
def service(tmp_path):
    """A service that runs: it holds its lock."""
    with (tmp_path / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


def test_a_site_that_nobody_holds_begins_its_rounds(brake):
    brake.require()
    with brake.beginning():
        pass
    assert (brake.paused, brake.ending) == (None, None)
    Brake(None).require()
    with Brake(None).beginning():
        pass


def test_a_pause_holds_until_it_is_released_for_every_process(brake, tmp_path):
    held = brake.pause("a test")
    assert held.by == "a test"
    # Another process, and one that is started later, read the same.
    assert Brake(tmp_path).paused == held
    with pytest.raises(PausedError, match=re.escape(f"paused since {held.since}, by a test")):
        brake.require()
    with pytest.raises(PausedError), brake.beginning():
        pytest.fail("a round was begun")
    # Whoever pauses again changes nothing of it.
    assert brake.pause("somebody else") == held
    assert brake.release() is True
    assert brake.release() is False
    brake.require()


def test_the_end_holds_too_and_is_taken_back_by_going_on(brake, service):
    assert brake.end("a test") is not None
    with pytest.raises(PausedError, match="service is to end"):
        brake.require()
    assert brake.release() is True
    brake.require()


def test_a_service_that_does_not_run_is_not_told_to_end(brake, tmp_path):
    """Else the next one that somebody starts would end at once."""
    assert brake.end("a test") is None
    assert brake.ending is None


def test_a_service_that_ends_meanwhile_leaves_no_order_for_the_next(brake, service, monkeypatch):
    hold = brake._hold

    def ends(name, by):
        held = hold(name, by)
        fcntl.flock(service, fcntl.LOCK_UN)
        return held

    monkeypatch.setattr(brake, "_hold", ends)
    assert brake.end("a test") is None
    assert brake.ending is None


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"since": "2026-', b"\xff", b"[]", b'{"since": 1, "by": "x"}']
)
def test_a_file_that_is_half_written_holds_as_well(brake, tmp_path, content):
    (tmp_path / "paused.json").write_bytes(content)
    assert brake.paused == Held()
    with pytest.raises(PausedError, match=r"this site is paused\n"):
        brake.require()


def test_words_that_would_steer_a_terminal_are_not_shown(brake, tmp_path):
    (tmp_path / "paused.json").write_text('{"since": "\\u001b[2J", "by": "x"}')
    assert brake.paused == Held()


@pytest.mark.parametrize("kind", ["dangling", "link", "folder", "pipe", "forbidden"])
def test_whatever_lies_there_holds_and_keeps_nobody_waiting(brake, tmp_path, kind):
    path, other = tmp_path / "paused.json", tmp_path / "other"
    other.write_text('{"since": "then", "by": "them"}')
    if kind == "dangling":
        path.symlink_to("/nowhere")
    elif kind == "link":
        path.symlink_to(other)
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_text('{"since": "then", "by": "them"}')
        path.chmod(0)
    with pytest.raises(PausedError):
        brake.require()
    # Pausing once more neither follows a link nor waits for a pipe.
    brake.pause("a test")
    assert other.read_text() == '{"since": "then", "by": "them"}'
    if kind == "folder":
        with pytest.raises(StorageError, match=r"paused\.json cannot be removed"):
            brake.release()
        return
    assert brake.release() is True
    assert other.exists()
    brake.require()


def test_a_state_that_cannot_be_looked_into_holds(tmp_path):
    (tmp_path / "state").write_text("no folder")
    assert Brake(tmp_path / "state").paused == Held()


def test_who_pauses_while_a_round_begins_waits_for_its_charge(brake, tmp_path):
    """So that no charge comes after the answer that the site is paused."""
    order, inside = [], threading.Event()

    def pause():
        inside.wait(20)
        Brake(tmp_path).pause("a test")
        order.append("paused")

    thread = threading.Thread(target=pause)
    thread.start()
    with brake.beginning():
        inside.set()
        time.sleep(0.3)
        order.append("charged")
    thread.join(20)
    assert order == ["charged", "paused"]


def test_a_round_does_not_begin_before_a_pause_that_is_being_said_is_said(brake, tmp_path):
    begun = []

    def begin():
        try:
            with brake.beginning():
                begun.append(True)
        except PausedError:
            begun.append(False)

    with in_turn(tmp_path / "brake.lock"):
        thread = threading.Thread(target=begin)
        thread.start()
        (tmp_path / "paused.json").touch()
    thread.join(20)
    assert begun == [False]


def test_what_a_coordinator_hears_is_a_kind_of_its_own_and_no_word_more():
    refusal = Refusal.of_site(PausedError("since Mrs Example came", "x"), full_text=False)
    assert refusal.kind == "PausedError"
    assert "Example" not in refusal.model_dump_json()
    error = refusal.to_error("anne")
    assert type(error) is PausedError
    assert str(error.message) == (
        "anne: the site has paused: it begins no round until its people say so"
    )
    assert error.exit_code == 3
