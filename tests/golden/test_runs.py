"""What runs, their coordinator and their audits leave behind is read for ever."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden.kept import V1, V2, V3, V4, V6, damaged, read, read_lines

from fedllm.audit.attacks import results
from fedllm.audit.ledgers.comparison import load_comparison
from fedllm.config import RunConfig, load_run_config, load_site_policy, to_toml
from fedllm.errors import CheckpointError, ConfigError, FedllmError
from fedllm.federation.protocol.wire import digest
from fedllm.federation.site.memory import SiteMemory
from fedllm.identity.keys import Identity
from fedllm.identity.roster import Roster
from fedllm.privacy.ledger.audit import read_state
from fedllm.privacy.ledger.heads import read_heads
from fedllm.runs.checkpoints import RunState, load_checkpoint, newest_round, save_checkpoint
from fedllm.runs.folder import config_digest, is_same_run, require_same_model, require_same_public
from fedllm.runs.job import read_job, read_outcome, write_job, write_outcome
from fedllm.runs.metrics import RoundReport, append_report, read_reports
from fedllm.runs.observer import Start, StepReport
from fedllm.runs.progress import ProgressFile
from fedllm.runs.record import read_run_folder
from fedllm.runs.summary import read_summary, write_summary
from fedllm_server.following import follow
from fedllm_server.jobs import all_jobs, error_of, runs_folder

RUN, RUN_NOW = V1 / "simulation", V2 / "simulation"
RUNS = pytest.mark.parametrize("folder", [RUN, RUN_NOW], ids=["v1", "v2"])
# Of what must not change between start and resume; before, locations were part of it.
DIGESTS = {
    RUN: "d1cdb084910d8e591090c1e31a489b99cbca8686f25b84a41a4c04eeb335a84b",
    RUN_NOW: "beccc024eb58572ab6e99b35e9da3f9a2d1ef3e6949cc43fa0332dd3a2fc6eac",
}
FULL = "52cb912253fbff5c556b2d9e605d337b737828e257a04bee3f0ca6d51fdb8d42"
FULL_NOW = "15ac0c1dede78b3bdbca45eb48e4c0135570821c5676fdc1114e1639e0ff0ecb"
OPTIMIZER = {
    RUN: {
        "steps": "161f4c0b1a18a0501127332c387e782b5acc10c6c7a9f7e494c1e3394c49bad5",
        "mean": "5d28054718039af10a2adbf76e626d75bde01af3c441eb0b29dd3c55009babf5",
        "square": "8986e3d6e805c40929e63c84cef189a9c92cb43e8f093777f36a7a768a377b37",
    },
    RUN_NOW: {
        "steps": "161f4c0b1a18a0501127332c387e782b5acc10c6c7a9f7e494c1e3394c49bad5",
        "mean": "3901675bc229f22d643d21e1813ab12d3d38a255d2359033676d84e4f3b2fe9c",
        "square": "10f0edf03d2f844cfcfd653aac0a95ca4e66624c268c00b05a4d8e0aaa5938c0",
    },
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
    (V4 / "simulation" / "policy.toml", load_site_policy),
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


@RUNS
def test_a_run_can_be_resumed_and_is_the_same_run(folder):
    config, summary = load_run_config(folder / "run.toml"), read(folder / "summary.json")
    state = load_checkpoint(folder / "checkpoints")
    assert state is not None
    assert state.config == DIGESTS[folder]
    assert is_same_run(state.config, config, folder)
    other = config.model_copy(update={"seed": 1})
    assert not is_same_run(state.config, other, folder)
    assert (state.round, state.noise, newest_round(folder / "checkpoints")) == (3, (0.0,) * 3, 3)
    assert (state.run, state.adapter.dtype) == (summary["run_id"], np.float32)
    assert digest(state.adapter.astype("<f4").tobytes()) == summary["adapter_sha256"]
    found = {name: digest(array.astype("<f8").tobytes()) for name, array in state.optimizer.items()}
    assert found == OPTIMIZER[folder]
    # Before, neither the base model nor the round's figures stood in it.
    now = summary["model"]["fingerprint"]
    assert state.model == (now if folder == RUN_NOW else "")
    require_same_model(state.model, now, folder)
    assert (state.report is None) == (folder == RUN)
    if state.report is not None:
        line = read_reports(folder / "metrics.jsonl")[3]
        assert (state.report.round, state.report.sites) == (3, 2)
        assert state.report.update_norm == line.update_norm


@RUNS
def test_a_run_of_an_earlier_version_goes_on_whatever_is_public(folder):
    """Which labels and which test file it began with is not known."""
    state = load_checkpoint(folder / "checkpoints")
    assert (state.labels, state.test) == (None, None)
    require_same_public(state, ["three", "one"], "0" * 64, folder)


def test_a_checkpoint_knows_the_labels_and_the_test_file_that_the_run_began_with(tmp_path):
    kept = V3 / "simulation" / "checkpoints"
    state = load_checkpoint(kept)
    assert (state.round, state.config, state.noise) == (3, DIGESTS[RUN_NOW], (0.0,) * 3)
    assert state.labels == ("one", "two", "three")
    assert state.test == "cce5bfafacb00854cb2df8d23c8ca91d7f14eac9f0c4c2198dbbf27c9dcf196f"
    require_same_public(state, state.labels, state.test, tmp_path)
    for labels, test in ((("two", "one", "three"), state.test), (state.labels, "0" * 64)):
        with pytest.raises(ConfigError, match="was begun with another"):
            require_same_public(state, labels, test, tmp_path)
    again = save_checkpoint(tmp_path, state)
    written = read(kept / "round-00003" / "state.json")
    assert {**read(again / "state.json"), "sha256": written["sha256"]} == written


def test_what_may_not_change_in_a_resumed_run_is_hashed_as_it_was():
    assert config_digest(load_run_config(RUN / "run.toml")) == DIGESTS[RUN_NOW]
    # Of a URL only the last part counted; a run that began so goes on with its own run.toml.
    full = load_run_config(V1 / "config" / "run.toml")
    assert config_digest(full) == FULL_NOW
    assert is_same_run(FULL, full, V1 / "config")
    data = full.data.model_copy(update={"train": full.data.train.replace("db.", "other.")})
    assert not is_same_run(FULL, full.model_copy(update={"data": data}), V1 / "config")


@RUNS
def test_a_checkpoint_is_written_as_it_was_and_refused_when_a_byte_changed(tmp_path, folder):
    state = load_checkpoint(folder / "checkpoints")
    assert isinstance(state, RunState)
    again = save_checkpoint(tmp_path / "checkpoints", state)
    kept = read(folder / "checkpoints" / "round-00003" / "state.json")
    written = {**read(again / "state.json"), "sha256": kept["sha256"]}
    # Later keys are empty for a state that did not have them.
    added = {"labels": None, "test": None}
    added |= {} if folder == RUN_NOW else {"model": "", "report": None}
    assert written == kept | added
    content = (folder / "checkpoints" / "round-00003" / "state.npz").read_bytes()
    (again / "state.json").write_text(json.dumps(kept))
    for changed in damaged(content, every=97):
        (again / "state.npz").write_bytes(changed)
        with pytest.raises(CheckpointError):
            load_checkpoint(tmp_path / "checkpoints")


@RUNS
def test_a_run_folder_is_read(tmp_path, folder):
    run, kept = read_run_folder(folder), read(folder / "summary.json")
    assert isinstance(run.config, RunConfig)
    assert run.summary == kept
    assert [line.number for line in run.rounds] == [0, 1, 2, 3]
    assert run.epsilon == kept["privacy"]["sites"]
    assert run.rounds[3].metrics == kept["metrics"]
    assert set(run.rounds[3].seconds) >= {"train", "encrypt", "aggregate", "decrypt", "total"}
    assert run.simulated
    assert (run.time("started") is None) == (folder == RUN)
    write_summary(tmp_path, read_summary(folder))
    written = read(tmp_path / "summary.json")
    added = {} if folder == RUN_NOW else {"started": "", "finished": "", "simulated": False}
    assert written == kept | added
    if folder == RUN_NOW:
        assert (tmp_path / "summary.json").read_bytes() == (folder / "summary.json").read_bytes()


@pytest.mark.parametrize("folder", [RUN, V4 / "simulation"], ids=["v1", "v4"])
def test_what_a_simulated_site_keeps_fits_together(folder):
    roster = Roster.from_json((folder / "roster.json").read_text())
    anne = Identity.load("anne", folder / "identities" / "anne")
    assert roster.sites["anne"] == anne.public_bytes()
    heads = read_heads(folder / "ledger_heads.jsonl")
    assert [len(heads[name]) for name in ("anne", "bob")] == [3, 3]
    state = read_state(folder / "ledgers" / "anne.sqlite", anne.public_bytes(), heads["anne"])
    run = read(folder / "summary.json")["run_id"]
    assert [(c.run, c.round) for c in state.reservations.values()] == [
        (run, number) for number in (1, 2, 3)
    ]
    assert (state.accounts(), state.unit("")) == ([""], "person")
    memory = SiteMemory(folder / "ledgers" / "anne.memory.json")
    assert memory.used()
    # Before, the memory held what now stands in the ledger.
    end = memory.head()
    assert (end and str(end)) == (None if folder == RUN else str(state.head))
    assert [one.sites for one in state.settled.values()] == ([] if folder == RUN else [2] * 3)


def test_a_simulated_sites_own_log_has_its_rounds():
    run = read(RUN / "summary.json")["run_id"]
    lines = read_lines(RUN / "sites" / "anne.jsonl")
    assert [(line["run"], line["round"]) for line in lines] == [(run, n) for n in (1, 2, 3)]


FIGURES = [
    RoundReport(round=0, metrics={"loss": 2.75, "accuracy": 0.19}),
    RoundReport(
        round=1,
        sites=2,
        dropped={"carl": "carl: too late"},
        # It was no number; an epsilon without a bound is null too.
        metrics={"loss": 2.25, "accuracy": None},
        site_metrics={"units": 40.5, "loss": 2.0, "loss_noise": 0.125},
        epsilon={"anne": 1.5, "bob": None},
        update_norm=0.75,
        bytes_up=1000,
        bytes_down=2000,
        seconds={"total": 1.5, "train": 1.0},
        started="2025-01-02T03:04:05.678+00:00",
        finished="2025-01-02T03:04:07.178+00:00",
    ),
]
BEFORE = {"epsilon": {"anne": 1.5, "bob": 1.25}, "started": "", "finished": ""}
FIGURES_BEFORE = [FIGURES[0], FIGURES[1].model_copy(update=BEFORE)]


def test_metrics_are_read_and_written_as_they_were(tmp_path):
    for folder, figures in ((V1, FIGURES_BEFORE), (V2, FIGURES)):
        path = folder / "progress" / "metrics.jsonl"
        assert read_reports(path) == figures
    for report in FIGURES:
        append_report(tmp_path / "again.jsonl", report)
    assert (tmp_path / "again.jsonl").read_bytes() == path.read_bytes()
    # Earlier lines lacked the times.
    lines = read_lines(V1 / "progress" / "metrics.jsonl")
    times = {"started": "", "finished": ""}
    assert [line | times for line in lines] == [one.model_dump() for one in FIGURES_BEFORE]


REJECTED = RoundReport(
    round=2,
    sites=2,
    metrics={"loss": 9.5, "accuracy": 0.01},
    update_norm=64.0,
    rejected={"norm": "the norm is too large", "test": "the loss is 9.5"},
    kept_round=1,
    norm_ratio=1.5,
)


def test_a_round_that_was_rejected_is_read_and_written_as_it_was(tmp_path):
    path = V6 / "progress" / "metrics.jsonl"
    assert read_reports(path) == [*FIGURES, REJECTED]
    for report in read_reports(path):
        append_report(tmp_path / "again.jsonl", report)
    assert (tmp_path / "again.jsonl").read_bytes() == path.read_bytes()
    told = followed(tmp_path, V6 / "progress" / "progress.jsonl")
    assert [event[1] for event in told if event[0] == "finished_round"] == [*FIGURES, REJECTED]


def test_a_checkpoint_keeps_what_a_run_goes_back_to(tmp_path):
    kept = V6 / "checkpoints"
    state = load_checkpoint(kept)
    assert (state.round, state.noise, state.labels) == (2, (0.0,) * 3, ("one", "two"))
    assert (state.report.rejected, state.report.kept_round) == ({"test": "the loss is 9.5"}, 1)
    assert (state.good.round, state.good.loss) == (1, 2.25)
    assert state.good.adapter.tolist() == [0.5, -0.25, 0.125]
    assert {name: values.tolist() for name, values in state.good.optimizer.items()} == {
        "steps": [1.0], "mean": [0.5, 0.25, -1.0], "square": [0.0] * 3
    }  # fmt: skip
    again = save_checkpoint(tmp_path, state)
    written = read(kept / "round-00002" / "state.json")
    assert {**read(again / "state.json"), "sha256": written["sha256"]} == written


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
    assert str(error_of(failed)).splitlines() == [
        "run 'failed': the ceiling is 8",
        "  -> plan fewer rounds",
    ]
    assert error_of(failed).exit_code == 3
    for name in ("finished", "failed"):
        outcome = read(V1 / "job" / name / "outcome.json")
        assert outcome == {"error": found[name].error}
        assert read_outcome(V1 / "job" / name) == (found[name].error,)
        write_job(tmp_path, found[name])
        write_outcome(tmp_path, found[name].error)
        for file in ("job.json", "outcome.json"):
            assert (tmp_path / file).read_bytes() == (V1 / "job" / name / file).read_bytes()
        assert read_job(tmp_path) == found[name]


def followed(folder: Path, progress: Path) -> list[Any]:
    """Return what a run of a coordinator tells, with the kept progress."""
    run = runs_folder(coordinator(folder)) / "finished"
    shutil.copy(V1 / "config" / "run.toml", run)
    shutil.copy(progress, run)
    heard = Heard()
    assert follow(run, heard).status == "finished"
    return heard.told


CONFIG = load_run_config(V1 / "config" / "run.toml")
NOTE = ("note", "WARNING: a word to the ‘wise’", {})
ANSWER = ("site_answered", 1, "anne", 1, 3, {})
STEPS = [
    ("advanced", StepReport(1, 6, 16, 5.5, 1000.0, 0.5), {}),
    ("advanced", StepReport(3, 6, 48, None, 1000.0, 0.25, {"bits_per_byte": 7.5}), {}),
]


def test_the_progress_of_a_run_is_told_as_it_was(tmp_path):
    assert followed(tmp_path, V1 / "progress" / "progress.jsonl") == [
        ("started", Start("", CONFIG, "rounds", 2, 0, 3), {}),
        NOTE,
        ANSWER,
        ("finished_round", FIGURES[0], {}),
        ("close", {}),
    ]


def test_progress_is_told_and_written_as_it_was(tmp_path):
    path = V2 / "progress" / "progress.jsonl"
    told = followed(tmp_path, path)
    assert told == [
        ("started", Start("run-1", CONFIG, "rounds", 2, 0, 3), {}),
        NOTE,
        ANSWER,
        *(("finished_round", report, {}) for report in FIGURES),
        *STEPS,
        ("close", {}),
    ]
    (tmp_path / "again").mkdir()
    again = ProgressFile(tmp_path / "again")
    for kind, *values, named in told:
        getattr(again, kind)(*values, **named)
    assert (tmp_path / "again" / "progress.jsonl").read_bytes() == path.read_bytes()


def test_the_progress_of_a_simulation_has_the_figures_of_its_rounds():
    told = read_lines(RUN_NOW / "progress.jsonl")
    figures = [line["report"] for line in told if line["kind"] == "finished_round"]
    assert figures == read_lines(RUN_NOW / "metrics.jsonl")


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
