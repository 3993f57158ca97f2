"""What runs, their coordinator and their audits leave behind is read for ever."""

from __future__ import annotations

import json
import shutil
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden.kept import V1, damaged, read, read_lines

from fedllm.audit.attacks import results
from fedllm.audit.ledgers.comparison import load_comparison
from fedllm.audit.run_folder import read_run_folder
from fedllm.config import RunConfig, load_run_config, load_site_policy, to_toml
from fedllm.errors import CheckpointError, FedllmError
from fedllm.federation.protocol.wire import digest
from fedllm.federation.site.memory import SiteMemory
from fedllm.identity.keys import Identity
from fedllm.identity.roster import Roster
from fedllm.privacy.ledger.audit import read_state
from fedllm.privacy.ledger.heads import read_heads
from fedllm_server.checkpoints import RunState, load_checkpoint, newest_round, save_checkpoint
from fedllm_server.following import follow
from fedllm_server.jobs import all_jobs, read_job, runs_folder, write_job
from fedllm_server.loop import config_digest
from fedllm_server.metrics import append_report, read_reports
from fedllm_server.observer import FileObserver
from fedllm_server.summary import Summary

RUN = V1 / "simulation"
KNOWN = {
    "simulation": "d1cdb084910d8e591090c1e31a489b99cbca8686f25b84a41a4c04eeb335a84b",
    "full": "3dc96500ca14403de51c6f8634fdb2ef49eb3e46e79c600088048cd5242e528c",
}
OPTIMIZER = {
    "steps": "161f4c0b1a18a0501127332c387e782b5acc10c6c7a9f7e494c1e3394c49bad5",
    "mean": "5d28054718039af10a2adbf76e626d75bde01af3c441eb0b29dd3c55009babf5",
    "square": "8986e3d6e805c40929e63c84cef189a9c92cb43e8f093777f36a7a768a377b37",
}


def keys_of(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a table of tables as one, its keys joined by dots."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        inner = keys_of(value, f"{prefix}{key}.") if isinstance(value, dict) else None
        found |= {prefix + key: value} if inner is None else inner
    return found


CONFIGURATIONS = [
    (V1 / "config" / "run.toml", load_run_config),
    (V1 / "config" / "site.toml", load_site_policy),
    (RUN / "run.toml", load_run_config),
    (RUN / "policy.toml", load_site_policy),
]


@pytest.mark.parametrize(("path", "load"), CONFIGURATIONS, ids=lambda v: getattr(v, "name", ""))
def test_every_key_of_a_configuration_is_read_and_written_as_it_was(path, load):
    config = load(path)
    kept = keys_of(tomllib.loads(path.read_text()))
    found = keys_of(config.model_dump(mode="json"))
    # A later version may know more keys; none is lost and none means something else.
    assert kept.items() <= {k: v for k, v in found.items() if k in kept}.items()
    written = to_toml(config).splitlines()
    assert set(path.read_text().splitlines()) <= set(written)


def test_the_kept_configuration_names_nearly_every_key():
    kept = keys_of(tomllib.loads((V1 / "config" / "run.toml").read_text()))
    assert len(kept) == 60
    assert kept["name"] == "Full.run-1"
    assert kept["seed"] == 9007199254740993
    assert kept["data.query"] == "SELECT text, \"label\" FROM t WHERE note <> '\x7f'"
    assert kept["data.labels"] == ["one", "zwei", "三"]
    assert kept["privacy.delta"] == 1e-6


def test_a_run_can_be_resumed_and_is_the_same_run():
    config = load_run_config(RUN / "run.toml")
    state = load_checkpoint(RUN / "checkpoints")
    assert state is not None
    assert state.config == config_digest(config) == KNOWN["simulation"]
    assert config_digest(load_run_config(V1 / "config" / "run.toml")) == KNOWN["full"]
    assert (state.round, state.noise, newest_round(RUN / "checkpoints")) == (3, (0.0,) * 3, 3)
    assert state.adapter.dtype == np.float32
    assert (
        digest(state.adapter.astype("<f4").tobytes())
        == read(RUN / "summary.json")["adapter_sha256"]
    )
    found = {name: digest(array.astype("<f8").tobytes()) for name, array in state.optimizer.items()}
    assert found == OPTIMIZER


def test_a_checkpoint_is_written_as_it_was_and_refused_when_a_byte_changed(tmp_path):
    state = load_checkpoint(RUN / "checkpoints")
    assert isinstance(state, RunState)
    again = save_checkpoint(tmp_path / "checkpoints", state)
    kept = read(RUN / "checkpoints" / "round-00003" / "state.json")
    assert kept.items() <= {**read(again / "state.json"), "sha256": kept["sha256"]}.items()
    content = (RUN / "checkpoints" / "round-00003" / "state.npz").read_bytes()
    (again / "state.json").write_text(json.dumps(kept))
    for changed in damaged(content, every=97):
        (again / "state.npz").write_bytes(changed)
        with pytest.raises(CheckpointError):
            load_checkpoint(tmp_path / "checkpoints")


def test_a_run_folder_is_read():
    run, kept = read_run_folder(RUN), read(RUN / "summary.json")
    assert isinstance(run.config, RunConfig)
    assert run.summary == kept
    assert Summary(**kept).model_dump(mode="json").items() >= kept.items()
    assert [line.number for line in run.rounds] == [0, 1, 2, 3]
    assert run.epsilon == kept["privacy"]["sites"]
    assert run.rounds[3].metrics == kept["metrics"]
    assert set(run.rounds[3].seconds) >= {"train", "encrypt", "aggregate", "decrypt", "total"}


def test_what_a_simulated_site_keeps_fits_together():
    roster = Roster.from_json((RUN / "roster.json").read_text())
    anne = Identity.load("anne", RUN / "identities" / "anne")
    assert roster.sites["anne"] == anne.public_bytes()
    heads = read_heads(RUN / "ledger_heads.jsonl")
    assert [len(heads[name]) for name in ("anne", "bob")] == [3, 3]
    state = read_state(RUN / "ledgers" / "anne.sqlite", anne.public_bytes(), heads["anne"])
    run = read(RUN / "summary.json")["run_id"]
    assert [(c.run, c.round) for c in state.reservations.values()] == [
        (run, number) for number in (1, 2, 3)
    ]
    assert next(iter(state.datasets.values())).unit == "person"
    assert SiteMemory(RUN / "ledgers" / "anne.memory.json").settled(run, 3) == ("anne", "bob")
    lines = read_lines(RUN / "sites" / "anne.jsonl")
    assert [(line["run"], line["round"]) for line in lines] == [(run, n) for n in (1, 2, 3)]


def test_metrics_are_read_and_written_as_they_were(tmp_path):
    path = V1 / "progress" / "metrics.jsonl"
    before, first = read_reports(path)
    assert (before.round, before.sites, before.metrics) == (0, 0, {"loss": 2.75, "accuracy": 0.19})
    assert (first.round, first.dropped) == (1, {"carl": "carl: too late"})
    assert first.metrics == {"loss": 2.25, "accuracy": None}, "it was no number"
    assert first.site_metrics == {"units": 40.5, "loss": 2.0, "loss_noise": 0.125}
    assert first.epsilon == {"anne": 1.5, "bob": 1.25}
    assert (first.update_norm, first.bytes_up, first.bytes_down) == (0.75, 1000, 2000)
    assert first.seconds == {"total": 1.5, "train": 1.0}
    for report in (before, first):
        append_report(tmp_path / "again.jsonl", report)
    for old, new in zip(read_lines(path), read_lines(tmp_path / "again.jsonl"), strict=True):
        assert old.items() <= new.items()


class Heard:
    """Notes what it is told, as an observer is."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def __getattr__(self, kind: str) -> Any:
        return lambda *values, **named: self.told.append((kind, *values, named))


def coordinator(folder: Path) -> Path:
    """Return a kit with the kept runs of a coordinator."""
    for name in ("finished", "failed"):
        shutil.copytree(V1 / "job" / name, runs_folder(folder) / name)
    shutil.copy(V1 / "job" / "status.json", folder / "state")
    return folder


def test_the_runs_of_a_coordinator_are_read_and_written_as_they_were(tmp_path):
    found = {job.name: job for _, job in all_jobs(coordinator(tmp_path))}
    done, failed = found["finished"], found["failed"]
    moment = "2025-01-02T03:04:05.678+00:00"
    assert (done.status, done.submitted, done.starts, done.error) == ("finished", moment, 2, None)
    assert str(failed.to_error()).splitlines() == [
        "run 'failed': the ceiling is 8",
        "  -> plan fewer rounds",
    ]
    assert failed.to_error().exit_code == 3
    for name in ("finished", "failed"):
        outcome = read(V1 / "job" / name / "outcome.json")
        assert outcome == {"error": found[name].error}
        write_job(tmp_path, found[name])
        kept = read(V1 / "job" / name / "job.json")
        assert kept.items() <= read(tmp_path / "job.json").items()
        assert read_job(tmp_path) == found[name]


def test_the_progress_of_a_run_is_told_as_it_was(tmp_path):
    folder = runs_folder(coordinator(tmp_path)) / "finished"
    shutil.copy(V1 / "progress" / "progress.jsonl", folder)
    heard = Heard()
    assert follow(folder, heard).status == "finished"
    *words, finished, closed = heard.told
    assert words == [
        ("started", {"rounds": 2, "sites": 3, "done": 0}),
        ("note", {"text": "WARNING: a word to the ‘wise’"}),
        ("site_answered", {"round": 1, "site": "anne", "answered": 1, "sites": 3}),
    ]
    before = read_reports(V1 / "progress" / "metrics.jsonl")[0]
    assert (finished, closed) == (("finished_round", {"report": before}), ("close", {}))
    again = FileObserver(tmp_path / "again.jsonl")
    for kind, named in words:
        getattr(again, kind)(**named)
    again.finished_round(before)
    lines = (V1 / "progress" / "progress.jsonl").read_text().splitlines()
    assert (tmp_path / "again.jsonl").read_text().splitlines()[:3] == lines[:3]
    assert json.loads(lines[3])["report"].items() <= asdict(before).items()


def test_the_status_of_a_coordinator_is_shown(tmp_path, capsys):
    from fedllm.commands.server import status

    with pytest.raises(SystemExit):
        status(coordinator(tmp_path), json_output=False)
    shown = capsys.readouterr().out
    assert "Coordinator of north at fed.example.org:9092: NOT running, roster version 2" in shown
    assert "3 of 3" in shown


AUDITS = {
    "canaries": results.CanaryResult,
    "membership": results.MembershipResult,
    "extraction": results.ExtractionResult,
    "epsilon": results.EpsilonResult,
}


@pytest.mark.parametrize("name", AUDITS)
def test_the_result_of_an_audit_is_read_and_written_as_it_was(tmp_path, name):
    found = results.load(V1, name, AUDITS[name])
    assert found is not None
    again = results.save(tmp_path, name, found)
    kept = read(V1 / "audit" / f"{name}.json")
    assert (
        keys_of(kept).items()
        == {k: v for k, v in keys_of(read(again)).items() if k in keys_of(kept)}.items()
    )


def test_what_the_results_of_audits_say():
    canaries = results.load(V1, "canaries", results.CanaryResult)
    membership = results.load(V1, "membership", results.MembershipResult)
    extraction = results.load(V1, "extraction", results.ExtractionResult)
    epsilon = results.load(V1, "epsilon", results.EpsilonResult)
    comparison = load_comparison(V1 / "audit")
    assert None not in (canaries, membership, extraction, epsilon, comparison)
    assert [(a.kind, a.guesses, a.epsilon) for a in canaries.attacks] == [
        ("white-box", 40, 0.5),
        ("black-box", 0, 0.0),
    ]
    assert (canaries.claimed, canaries.recomputed, canaries.refuted) == (8.0, 7.5, False)
    assert [model.name for model in membership.models] == ["released", "twin"]
    assert (membership.models[0].auc, membership.control.epsilon) == (0.625, None)
    assert extraction.models[0].exposure == (8.0, 0.125)
    assert (epsilon.sites[0].colluders, epsilon.critical, epsilon.warnings) == (None, 0, 1)
    assert comparison.examples[0].answers == ("ward 3",)
    assert comparison.ranked_first(comparison.models[0]) == 1
    for name, kind in AUDITS.items():
        assert results.load(RUN, name, kind) is None


def test_a_damaged_line_of_metrics_is_refused(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes((V1 / "progress" / "metrics.jsonl").read_bytes().replace(b'"round"', b'"run'))
    with pytest.raises(FedllmError, match="line 1"):
        read_reports(path)
