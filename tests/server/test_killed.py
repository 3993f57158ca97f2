"""A run that is killed between any two writes goes on to the same end, also in another folder.

One run is watched; what lies on the disk after each write is kept as a copy, which is what a
kill at that instant leaves. Each copy is then resumed where it is.
"""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
from support.camera import Camera
from support.cutting import attempt_under_way, with_a_failed_attempt
from support.federation import records, small_config, write_jsonl

from fedllm.config import RunConfig
from fedllm.errors import CheckpointError, ConfigError
from fedllm.runs.checkpoints import newest_round
from fedllm.runs.metrics import read_reports
from fedllm.runs.summary import read_summary
from fedllm_server.simulation import simulate


@pytest.fixture
def config(tiny_checkpoint, tmp_path) -> RunConfig:
    (tmp_path / "data").mkdir()
    train = write_jsonl(tmp_path / "data" / "train.jsonl", records(24))
    test = write_jsonl(tmp_path / "data" / "test.jsonl", records(9, seed=99))
    return small_config(
        tiny_checkpoint("bert"),
        data={"train": str(train), "test": str(test), "labels": None, "sites": 2},
        rounds={"count": 2},
        training={"local_steps": 1, "learning_rate": 0.02, "batch_size": 4},
    )


def lines(out: Path) -> list[dict]:
    return [
        report.model_dump(exclude={"seconds", "started", "finished"})
        for report in read_reports(out / "metrics.jsonl")
    ]


def test_a_kill_after_any_write_leads_to_the_same_end(config, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        camera = Camera(out, tmp_path / "shots", patch)
        whole = simulate(config, out, observers=[])
    names = [name for name, _ in camera.taken]
    for name in ("run.toml", "policy.toml", "roster.json", "checkpoints/round-00000"):
        assert name in names
    for name in ("checkpoints/round-00002", "adapter", "summary.json", "report.html"):
        assert name in names
    assert names.count("metrics.jsonl") == 6
    begun = names.index("checkpoints/round-00000")
    # All from the end of the first round on; before that, two kinds stand for the others.
    late = camera.taken[names.index("checkpoints/round-00001") :]
    ends = {None: (whole, out)}
    for name, shot in [camera.taken[begun - 1], camera.taken[begun], *late]:
        attempt = attempt_under_way(shot)
        if attempt not in ends:
            other = tmp_path / f"failed-{attempt}"
            run = partial(simulate, config, other, observers=[])
            ends[attempt] = (with_a_failed_attempt(attempt, run), other)
        whole, out = ends[attempt]
        summary = simulate(config, shot, resume=True, observers=[])
        assert summary.adapter_sha256 == whole.adapter_sha256, name
        assert summary.metrics == whole.metrics, name
        assert lines(shot) == lines(out), name
        assert (shot / "report.html").exists(), name
    whole, out = ends[None]
    first = dict(reversed(camera.taken))["run.toml"]
    (first / ".run.toml.left").touch()
    assert simulate(config, first, observers=[]).adapter_sha256 == whole.adapter_sha256


@pytest.fixture
def spent(config, tmp_path) -> tuple[RunConfig, Path]:
    """A private run that was killed in its last evaluation."""
    private = config.model_copy(
        update={"privacy": config.privacy.model_copy(update={"epsilon": 6.0})}
    )
    out = tmp_path / "out"
    simulate(private, out, observers=[])
    text = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    (out / "metrics.jsonl").write_text("".join(text[:-1]))
    shutil.rmtree(out / "adapter")
    for name in ("summary.json", "report.html", "report.json"):
        (out / name).unlink()
    return private, out


def test_a_run_that_spent_all_and_evaluates_can_be_resumed(spent):
    config, out = spent
    assert newest_round(out / "checkpoints") == 2
    summary = simulate(config, out, resume=True, observers=[])
    assert (out / "adapter").exists()
    assert [report.round for report in read_reports(out / "metrics.jsonl")] == [0, 1, 2]
    assert 5 < summary.privacy["epsilon"] <= 6
    assert set(summary.privacy["sites"]) == {"site-00", "site-01"}
    assert read_summary(out) == summary


def test_a_checkpoint_of_an_earlier_version_ends_too(spent):
    config, out = spent
    path = out / "checkpoints" / "round-00002" / "state.json"
    header = json.loads(path.read_text())
    del header["model"], header["report"]
    path.write_text(json.dumps(header))
    assert simulate(config, out, resume=True, observers=[]).rounds == 2


def content(out: Path) -> dict[str, bytes]:
    # Neither the lock nor what is told to watchers.
    mine = (path for path in out.rglob("*") if path.is_file())
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in mine
        if path.name not in (".lock", "progress.jsonl")
    }


def test_a_finished_run_is_changed_by_nothing(config, tmp_path, tiny_checkpoint):
    out = tmp_path / "out"
    whole = simulate(config, out, observers=[])
    before = content(out)
    other = config.model_copy(
        update={"privacy": config.privacy.model_copy(update={"epsilon": 1.0, "unit": "site"})}
    )
    with pytest.raises(ConfigError, match="another configuration"):
        simulate(other, out, resume=True, observers=[])
    with pytest.raises(ConfigError, match="not empty"):
        simulate(other, out, observers=[])
    assert simulate(config, out, resume=True, observers=[]) == whole
    assert content(out) == before


def test_a_run_begun_with_another_model_is_refused(spent):
    config, out = spent
    path = out / "checkpoints" / "round-00002" / "state.json"
    header = json.loads(path.read_text())
    path.write_text(json.dumps(header | {"model": "0" * 64}))
    before = content(out)
    with pytest.raises(CheckpointError, match=r"another base model: its fingerprint was 0{16},"):
        simulate(config, out, resume=True, observers=[])
    assert content(out) == before


def test_a_model_that_diverged_still_has_a_summary_and_a_report(config, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "fedllm_server.loop.evaluate", lambda model, data: {"loss": float("nan"), "accuracy": 0.1}
    )
    out = tmp_path / "out"
    summary = simulate(config, out, observers=[])
    assert summary.metrics["loss"] is None
    assert "DIVERGED" in summary.describe(out)
    assert read_summary(out) == summary
    assert (out / "report.html").exists()
    for name in ("summary.json", "report.json"):
        assert "NaN" not in (out / name).read_text()
    for line in (out / "progress.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_a_run_whose_files_all_moved_goes_on(config, spent, tmp_path):
    private, out = spent
    shutil.move(tmp_path / "data", tmp_path / "elsewhere")
    moved = private.data.model_copy(
        update={name: str(tmp_path / "elsewhere" / f"{name}.jsonl") for name in ("train", "test")}
    )
    shutil.move(out, tmp_path / "moved")
    private = private.model_copy(update={"data": moved})
    assert simulate(private, tmp_path / "moved", resume=True, observers=[]).rounds == 2
