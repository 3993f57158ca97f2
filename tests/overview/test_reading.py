"""What a service writes of itself, read while it writes, after it died, and from hostile files."""

from __future__ import annotations

import json
import os
import threading

import pytest
from support.overview import Site, sent_line, under_way

from fedllm.federation.site.service import ServiceNote
from fedllm.overview.reading import read_activity, read_running, read_service


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path)
    made.state.mkdir(exist_ok=True)
    return made


def running(site):
    return read_running(site.state, read_service(site.state))


def test_a_service_that_never_ran(site):
    found = read_service(site.state)
    assert (found.runs, found.connected, found.policy) == (False, None, "")
    assert running(site) is None


def test_what_a_service_says_while_it_runs_and_after(site):
    site.note("under_way.json", under_way())
    with site.running():
        found = read_service(site.state)
        assert (found.runs, found.connected, found.tasks) == (True, True, ("classification",))
        assert found.policy == str(site.policy)
        told = running(site)
        assert told is not None
        assert (told.name, told.round, told.rounds, told.phase) == ("ward", 4, 10, "computing")
    # Whoever killed it left its files: neither round nor connection is claimed of them.
    found = read_service(site.state)
    assert (found.runs, found.connected) == (False, None)
    assert running(site) is None


def test_the_note_of_a_service_is_what_is_read(site):
    site.note("under_way.json", under_way())
    clock = iter(f"2026-12-01T08:00:0{n}+00:00" for n in range(9))
    note = ServiceNote(site.state, site.policy, lambda: next(clock))
    with (site.state / "client.lock").open("a"):
        found = read_service(site.state)
        assert (found.since, found.tasks, found.linked) == (
            *("2026-12-01T08:00:00+00:00", None, "2026-12-01T08:00:01+00:00"),
        )
        note.linked(True)
        note.reads(("causal",))
        found = read_service(site.state)
        assert (found.tasks, found.linked) == (("causal",), "2026-12-01T08:00:02+00:00")
        # Since when, and not when it was tried last.
        note.linked(True)
        assert read_service(site.state).linked == "2026-12-01T08:00:02+00:00"
    # What an earlier process was in, this one is not.
    assert not (site.state / "under_way.json").exists()


def test_a_note_that_cannot_be_written_stops_no_service(site, tmp_path):
    (tmp_path / "file").write_text("")
    ServiceNote(tmp_path / "file", site.policy).linked(True)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"since": 1}', "\x00", '{"round": "4"}', "{" * 9999]
)
def test_damaged_notes_say_nothing(site, text):
    for name in ("service.json", "under_way.json"):
        (site.state / name).write_text(text)
    (site.state / "activity.jsonl").write_text(text + "\n")
    with (site.state / "client.lock").open("a"):
        assert not read_service(site.state).policy
        assert running(site) is None
    assert all(isinstance(one, dict) for one in read_activity(site.state / "activity.jsonl"))


@pytest.mark.parametrize("name", ["service.json", "under_way.json", "activity.jsonl"])
@pytest.mark.parametrize("kind", ["pipe", "link", "folder"])
def test_what_is_no_plain_file_is_not_opened(site, name, kind):
    path = site.state / name
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("/etc/hostname")
    else:
        path.mkdir()
    found = []

    def look():
        service = read_service(site.state)
        found.append((service, read_running(site.state, service), read_activity(path)))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(30)
    assert found, "it waits for the pipe"
    assert found[0][1:] == (None, [])


def test_a_line_that_is_being_written_comes_later(site):
    path = site.state / "activity.jsonl"
    site.did(sent_line(1))
    with path.open("a") as stream:
        stream.write(json.dumps(sent_line(2))[:40])
    assert len(read_activity(path)) == 1
    with path.open("a") as stream:
        stream.write(json.dumps(sent_line(2))[40:] + "\nnonsense\n")
    site.did(sent_line(3))
    assert [one["round"] for one in read_activity(path)] == [1, 2, 3]
