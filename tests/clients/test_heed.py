"""A service that its people pause, let go on, or end: when its process stops, and why."""

from __future__ import annotations

import fcntl
import threading
import time
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from fedllm.federation.site.brake import LOCK, Brake
from fedllm.processes import keep_running
from fedllm_client import node


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """A process that works for a site, with its people's brake in the test's hand."""
    said: list[str] = []
    monkeypatch.setattr(node, "say", said.append)
    monkeypatch.setattr(node, "_HEED_S", 0.01)
    stop, site, inner = threading.Event(), Future(), SimpleNamespace(busy=False)
    with (tmp_path / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=node.heed, args=(Brake(tmp_path), site, stop))
        thread.start()
        yield SimpleNamespace(
            brake=Brake(tmp_path), site=site, inner=inner, stop=stop, said=said, thread=thread
        )
        stop.set()
        thread.join(20)


def settled(seconds=0.3):
    time.sleep(seconds)


def test_a_pause_ends_no_process_and_going_on_begins_it_anew(watched):
    watched.site.set_result(watched.inner)
    watched.brake.pause("a test")
    settled()
    assert not watched.stop.is_set()
    assert watched.said == ["paused: no round is begun until the site goes on"]
    watched.brake.release()
    assert watched.stop.wait(20)
    watched.thread.join(20)
    assert watched.said[1:] == [
        "the site goes on",
        "connecting again, so that the coordinator asks this site anew",
    ]


@pytest.mark.parametrize("order", ["end", "pause and release"])
def test_a_round_that_is_under_way_is_waited_for(watched, order):
    watched.inner.busy = True
    watched.site.set_result(watched.inner)
    if order == "end":
        watched.brake.end("a test")
    else:
        watched.brake.pause("a test")
        settled()
        watched.brake.release()
    settled()
    assert not watched.stop.is_set()
    watched.inner.busy = False
    assert watched.stop.wait(20)


def test_an_end_is_told_once_and_ends_a_process_that_still_reads_its_records(watched):
    watched.brake.end("a test")
    assert watched.stop.wait(20)
    watched.thread.join(20)
    assert watched.said == [
        "the service was told to end, and does after the round that is under way"
    ]


def test_an_end_that_is_taken_back_ends_no_service(watched):
    watched.inner.busy = True
    watched.site.set_result(watched.inner)
    watched.brake.end("a test")
    settled()
    watched.brake.release()
    settled()
    assert not watched.stop.is_set()
    watched.inner.busy = False
    # Its process begins anew: the parent starts another, since nothing says that it is over.
    assert watched.stop.wait(20)
    assert watched.brake.ending is None
    assert watched.said[1] == "the site goes on"


def test_a_pause_from_before_the_start_is_told(tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(node, "say", said.append)
    monkeypatch.setattr(node, "_HEED_S", 0.01)
    Brake(tmp_path).pause("a test")
    stop = threading.Event()
    thread = threading.Thread(target=node.heed, args=(Brake(tmp_path), Future(), stop))
    thread.start()
    settled()
    stop.set()
    thread.join(20)
    assert said == ["paused: no round is begun until the site goes on"]


def test_no_process_follows_one_that_was_to_end(monkeypatch):
    started = []

    def start(module, arguments):
        started.append(module)
        return SimpleNamespace(poll=lambda: 0, returncode=0)

    monkeypatch.setattr("fedllm.processes.start_module", start)
    stop = threading.Event()
    code = keep_running("m", [], stop, print, over=lambda: len(started) == 3)
    assert (code, len(started), stop.is_set()) == (0, 3, False)


def test_an_end_is_not_kept_waiting_by_a_process_that_fails(monkeypatch):
    started = []

    def start(module, arguments):
        started.append(time.monotonic())
        return SimpleNamespace(poll=lambda: 1, returncode=1)

    monkeypatch.setattr("fedllm.processes.start_module", start)
    monkeypatch.setattr("fedllm.processes._FIRST_WAIT_S", 600.0)
    over = threading.Event()
    threading.Timer(0.3, over.set).start()
    began = time.monotonic()
    assert keep_running("m", [], threading.Event(), print, over=over.is_set) == 0
    assert len(started) == 1
    assert time.monotonic() - began < 300
