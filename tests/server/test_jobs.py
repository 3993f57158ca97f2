"""Runs that were handed to a coordinator: what it takes, what it refuses, how one is stopped."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fedllm.config import RunConfig, parse
from fedllm.errors import BudgetError, ConfigError, FedllmError
from fedllm.models.checkpoints import fingerprint
from fedllm.processes import only_one
from fedllm.runs import names
from fedllm.runs.checkpoints import RunState, save_checkpoint
from fedllm.runs.folder import config_digest, write_config
from fedllm.runs.job import Job, read_job, write_job
from fedllm.runs.observer import Observer
from fedllm_server import following, jobs
from fedllm_server.following import follow
from fedllm_server.public_part import public_digest


@pytest.fixture
def config() -> RunConfig:
    values = {"name": "bank", "task": "classification", "model": {"path": "m"}}
    return parse(RunConfig, {**values, "data": {"train": "t", "labels": ["a", "b"]}}, "test")


def become(folder: Path, status: str) -> None:
    job = read_job(folder)
    assert job is not None
    write_job(folder, replace(job, status=status))


def test_a_submitted_run_is_queued_for_nobody_else_to_read(tmp_path, config):
    folder = jobs.submit(tmp_path, config, resume=False)
    assert folder == tmp_path / "state" / "runs" / "bank"
    assert folder.stat().st_mode & 0o777 == 0o700
    ((found, job),) = jobs.all_jobs(tmp_path)
    assert (found, job.name, job.status, job.starts) == (folder, "bank", "queued", 0)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("status", ["queued", "running"])
def test_a_run_under_way_is_not_taken_twice(tmp_path, config, status, resume):
    become(jobs.submit(tmp_path, config, resume=False), status)
    with pytest.raises(ConfigError, match=f"the run 'bank' is {status}") as caught:
        jobs.submit(tmp_path, config, resume=resume)
    assert caught.value.remedy == "watch it with --follow"


def test_an_ended_run_goes_on_only_when_that_is_asked_for(tmp_path, config):
    folder = jobs.submit(tmp_path, config, resume=False)
    (folder / names.CANCEL).touch()
    for status in ("failed", "cancelled"):
        become(folder, status)
        with pytest.raises(ConfigError, match=re.escape(f"a run 'bank' already ({status})")):
            jobs.submit(tmp_path, config, resume=False)
    other = config.model_copy(update={"task": "causal"})
    with pytest.raises(ConfigError, match="begun with another configuration"):
        jobs.submit(tmp_path, other, resume=True)
    assert jobs.submit(tmp_path, config, resume=True) == folder
    assert not (folder / names.CANCEL).exists()
    become(folder, "finished")
    with pytest.raises(ConfigError, match="is finished"):
        jobs.submit(tmp_path, config, resume=True)


def test_a_changed_run_toml_is_told_when_a_run_is_to_go_on(tmp_path, config):
    folder = jobs.submit(tmp_path, config, resume=False)
    become(folder, "failed")
    state = RunState("f00d", 1, (), config_digest(config), np.zeros(2, np.float32))
    save_checkpoint(folder / names.CHECKPOINTS, state)
    other = config.model_copy(update={"seed": 7})
    write_config(folder, other)
    with pytest.raises(ConfigError, match=r"run\.toml was changed after the run had begun") as one:
        jobs.submit(tmp_path, other, resume=True)
    assert "choose another name" in one.value.remedy


def test_what_was_never_begun_cannot_go_on(tmp_path, config):
    with pytest.raises(ConfigError, match="no run 'bank' to resume"):
        jobs.submit(tmp_path, config, resume=True)
    assert jobs.all_jobs(tmp_path) == []


def test_the_earliest_submitted_run_is_first(tmp_path):
    for name, when in (("a", "2026-01-03"), ("b", "2026-01-01"), ("c", "2026-01-02")):
        folder = jobs.runs_folder(tmp_path) / name
        folder.mkdir(parents=True)
        write_job(folder, Job(name, "queued", when))
    assert [job.name for _, job in jobs.all_jobs(tmp_path)] == ["b", "c", "a"]


def test_a_run_is_cancelled_by_the_coordinator_or_at_once_where_none_is_running(tmp_path, config):
    folder = jobs.submit(tmp_path, config, resume=False)
    with only_one(jobs.coordinator_lock(tmp_path), "a coordinator"):
        jobs.cancel(tmp_path, "bank")
    assert (folder / names.CANCEL).exists()
    assert jobs.all_jobs(tmp_path)[0][1].status == "queued"
    jobs.cancel(tmp_path, "bank")
    assert jobs.all_jobs(tmp_path)[0][1].status == "cancelled"
    for name in ("bank", "other"):
        with pytest.raises(ConfigError, match=f"the run '{name}' is not under way"):
            jobs.cancel(tmp_path, name)


def test_the_error_that_ended_a_run_keeps_its_kind_and_its_words():
    job = Job("bank", "failed", "2026-01-01")
    error = {"kind": "BudgetError", "message": "nothing is left", "remedy": "ask the site"}
    ended = jobs.error_of(replace(job, error=error))
    assert type(ended) is BudgetError
    assert (ended.message, ended.remedy) == ("run 'bank': nothing is left", "ask the site")
    silent = jobs.error_of(replace(job, status="cancelled"))
    assert type(silent) is FedllmError
    assert silent.message == "run 'bank': the run was cancelled"


def test_who_watches_is_told_of_a_line_that_a_crash_cut_off_and_hears_the_rest(tmp_path, config):
    folder = jobs.submit(tmp_path, config, resume=False)
    (folder / names.PROGRESS).write_bytes(b'{"kind": "no\n{"kind": "note", "text": "on"}\n')
    become(folder, "finished")
    heard: list[str] = []

    class Heard(Observer):
        def note(self, text):
            heard.append(text)

    assert follow(folder, Heard()).status == "finished"
    cut, on = heard
    assert cut.endswith("progress.jsonl, line 1: is not valid JSON; the line is left out")
    assert on == "on"


def test_who_watches_hears_every_minute_how_a_silent_run_stands(tmp_path, config, monkeypatch):
    folder = jobs.submit(tmp_path, config, resume=False)
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += 20.0
        if now[0] == 80.0:
            (folder / names.PROGRESS).write_bytes(b'{"kind": "note", "text": "on"}\n')
            become(folder, "running")
        if now[0] == 200.0:
            become(folder, "finished")

    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=sleep)
    monkeypatch.setattr(following, "time", clock)
    heard: list[tuple[float, str]] = []

    class Heard(Observer):
        def note(self, text):
            heard.append((now[0], text.partition(":")[0]))

    follow(folder, Heard())
    assert heard == [
        (60.0, "the coordinator has not begun the run"),
        (80.0, "on"),
        (140.0, "nothing new for a minute; the run goes on"),
    ]


def test_who_is_connected_is_read_from_what_the_coordinator_wrote(tmp_path):
    assert jobs.who_is_connected(tmp_path) == ""
    (tmp_path / "state").mkdir()
    status = tmp_path / "state" / "status.json"
    nodes = [
        {"name": "authority", "online": False, "title": None},
        {"name": "anne", "online": True, "title": "Sankt Änne"},
        {"name": "bob", "online": False},
    ]
    status.write_text(json.dumps({"nodes": nodes}))
    assert jobs.who_is_connected(tmp_path) == (
        "connected: Sankt Änne (anne); not connected: the key authority, bob"
    )
    for damaged in ("{", "[]", '{"nodes": 3}', '{"nodes": [{"online": true}]}', '{"nodes": ["x"]}'):
        status.write_text(damaged)
        assert jobs.who_is_connected(tmp_path) == ""


def test_what_is_resumed_with_other_data_is_refused_and_the_folder_stays_as_it_was(
    tmp_path, config, tiny_checkpoint
):
    test = tmp_path / "test.jsonl"
    test.write_text('{"text": "x", "label": "a"}\n{"text": "y", "label": "b"}\n')
    base = tiny_checkpoint("bert")
    values = config.model_dump() | {"model": {"path": str(base)}}
    values["data"] |= {"test": str(test), "labels": None}
    config = parse(RunConfig, values, "test")
    folder = jobs.submit(tmp_path, config, resume=False)
    state = RunState(
        "run-1",
        1,
        (),
        config_digest(config),
        np.zeros(3, np.float32),
        model=fingerprint(base),
        labels=("a", "b"),
        test=public_digest(config),
    )
    save_checkpoint(folder / names.CHECKPOINTS, state)
    become(folder, "failed")

    def moved(content, model=base):
        place = tmp_path / "other" / "test.jsonl"
        place.parent.mkdir(exist_ok=True)
        place.write_text(content)
        data = config.data.model_copy(update={"test": str(place)})
        path = config.model.model_copy(update={"path": str(model)})
        return config.model_copy(update={"data": data, "model": path})

    kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    lines = test.read_text()
    for content, model, words in (
        (lines.replace('"b"', '"c"'), base, "another set of labels"),
        (lines + lines, base, "another public test file"),
        (lines, tiny_checkpoint("llama"), f"its fingerprint was {fingerprint(base)[:16]}, that"),
    ):
        with pytest.raises(ConfigError, match=words):
            jobs.submit(tmp_path, moved(content, model), resume=True)
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == kept
    jobs.submit(tmp_path, moved(lines), resume=True)
    assert read_job(folder).status == "queued"
