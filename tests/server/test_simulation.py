"""Whole simulated runs: the folder they leave, resume, engines, bad input, exit codes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.cutting import attempt_under_way, with_a_failed_attempt
from support.federation import records, small_config, write_jsonl
from support.tasks import load_model

from fedllm.audit.ledgers.epsilon import audit_ledgers, find_ledgers
from fedllm.config import RunConfig, SitePolicy, load_run_config, load_site_policy, to_toml
from fedllm.errors import BudgetError, CheckpointError, ConfigError, DataError, TrainingError
from fedllm.federation.site.site import Site
from fedllm.identity.keys import Identity
from fedllm.privacy.ledger.audit import read_state
from fedllm.privacy.ledger.entries import Head
from fedllm.privacy.ledger.heads import keep_heads, read_heads
from fedllm.privacy.ledger.ledger import Ledger
from fedllm.runs import names
from fedllm.runs.metrics import read_reports
from fedllm.runs.names import HEADS as HEADS_FILE
from fedllm.runs.terminal import PlainObserver, describe_round
from fedllm_server.protections import given_up, odd_batch, weak_delta
from fedllm_server.simulation import simulate


@pytest.fixture
def config(tiny_checkpoint, tmp_path) -> RunConfig:
    train = write_jsonl(tmp_path / "train.jsonl", records(90))
    test = write_jsonl(tmp_path / "test.jsonl", records(30, seed=99))
    return small_config(
        tiny_checkpoint("bert"),
        data={"train": str(train), "test": str(test), "labels": None, "sites": 3},
        rounds={"count": 3},
        training={"learning_rate": 0.02, "head_learning_rate": 0.05, "batch_size": 10},
    )


def change(config: RunConfig, **sections) -> RunConfig:
    updates = {
        name: getattr(config, name).model_copy(update=section) for name, section in sections.items()
    }
    return RunConfig.model_validate(config.model_copy(update=updates).model_dump())


def test_a_gpu_that_is_not_there_is_refused_before_a_record_is_read(config, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    asked = change(config, engine={"device": "cuda"}, data={"train": "not there.jsonl"})
    with pytest.raises(ConfigError, match=r"engine\.device = 'cuda'"):
        simulate(asked, tmp_path / "out")
    with pytest.raises(ConfigError, match="sites that Ray runs have no GPU"):
        simulate(change(asked, engine={"device": "auto"}), tmp_path / "ray", engine="ray")


def ledgers(out: Path) -> dict[str, Ledger]:
    return {
        path.stem: Ledger.open(
            path, path.stem, Identity.load(path.stem, out / "identities" / path.stem)
        )
        for path in sorted((out / "ledgers").glob("*.sqlite"))
    }


def problems(out: Path, *more: Path) -> list[str]:
    """What the audit of a run's ledgers has to say, notes left out."""
    found = audit_ledgers(find_ledgers([out, *more])).findings
    return [finding.text for finding in found if finding.severity != "note"]


class StopAfter(PlainObserver):
    """Interrupts a run when a site answers in a round, as Ctrl-C would."""

    def __init__(self, round: int, sites: int = 1) -> None:
        super().__init__()
        self._at = (round, sites)

    def site_answered(self, round: int, site: str, answered: int, sites: int) -> None:
        if (round, answered) == self._at:
            raise KeyboardInterrupt


def test_a_private_run_leaves_a_whole_folder(config, tmp_path):
    out = tmp_path / "run"
    private = change(config, privacy={"epsilon": 6.0})
    summary = simulate(private, out)
    stored = json.loads((out / "summary.json").read_text())
    assert stored == json.loads(summary.model_dump_json())
    for key in ("task", "rounds", "sites", "metrics", "privacy", "encryption", "seconds"):
        assert key in stored
    assert {"total", "train", "encrypt", "aggregate", "decrypt"} <= set(stored["seconds"])
    assert stored["encryption"]["scheme"] == "bfv"
    assert stored["encryption"]["expansion_vs_fp32"] * 4 == pytest.approx(
        stored["encryption"]["bytes_up_per_parameter"]
    )
    assert 5.5 < stored["privacy"]["epsilon"] <= 6.0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [0, 1, 2, 3]
    assert lines[3]["epsilon"]["site-00"] > lines[1]["epsilon"]["site-00"] > 0
    times = [(line["started"], line["finished"]) for line in lines]
    assert all(began and began <= ended for began, ended in times)
    assert stored["started"] == times[0][0]
    assert stored["finished"] >= times[-1][1]
    assert stored["simulated"] is True
    assert (
        stored["model"] | {"architecture": "bert", "layers": 3, "hidden_size": 16}
        == (stored["model"])
    )
    assert load_run_config(out / "run.toml") == private
    report = (out / "report.html").read_text()
    assert "<html" in report
    assert "not recorded" not in report
    found = ledgers(out)
    assert len(found) == 3
    for ledger in found.values():
        (account,) = ledger.verify().accounts
        assert account.runs[0].committed == 3
    kept = read_heads(out / HEADS_FILE)
    assert kept.keys() == found.keys()
    for name, heads in kept.items():
        state = read_state(out / "ledgers" / f"{name}.sqlite", anchors=heads)
        # On which sum a site settles is written after its update left.
        assert [head.sequence for head in heads] == list(state.committed.values())
        assert list(state.settled) == list(state.committed)
        assert found[name].head().sequence == heads[-1].sequence + 1
    model = load_model(private, ("one", "three", "two"))
    model.load_adapter(out / "adapter")
    import hashlib

    assert hashlib.sha256(model.adapter().tobytes()).hexdigest() == stored["adapter_sha256"]
    assert problems(out) == []


def test_a_round_may_be_for_a_part_of_the_sites_who_alone_are_charged(config, tmp_path):
    private = change(
        config,
        privacy={"epsilon": 4.0, "delta": 1e-3},
        data={"sites": 4},
        rounds={"sites": 2, "count": 4},
    )
    out = tmp_path / "run"
    summary = simulate(private, out)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()][1:]
    assert [line["sites"] for line in lines] == [2] * 4
    assert summary.sites == 4
    kept = ledgers(out)
    assert len(kept) == 4
    rounds = {name: len(kept[name].events_of_run(summary.run_id)) for name in kept}
    assert sum(rounds.values()) == 8
    assert min(rounds.values()) < 4
    spent = summary.privacy["sites"]
    assert all(spent[name] <= 4.0 for name in kept)
    assert all((rounds[name] == 0) == (spent[name] == 0) for name in kept)
    assert problems(out) == []


def test_a_site_that_goes_away_before_it_reveals_costs_nothing(
    config, tmp_path, monkeypatch, capsys
):
    """Through Flower's grid: the sum and all charges are as if it had stayed."""
    out, other = tmp_path / "run", tmp_path / "other"
    one = change(config, rounds={"count": 1, "min_sites": 3}, privacy={"epsilon": 8.0})
    simulate(one, other)
    unmask = Site.unmask

    def gone(self, request):
        if self.name == "site-01":
            raise OSError("the machine went down")
        return unmask(self, request)

    monkeypatch.setattr(Site, "unmask", gone)
    simulate(one, out)
    assert "counts site site-01, whose masks the others took off" in capsys.readouterr().err
    lines = [
        json.loads((path / "metrics.jsonl").read_text().splitlines()[-1]) for path in (out, other)
    ]
    assert [line["sites"] for line in lines] == [3, 3]
    assert [line["dropped"] for line in lines] == [{}, {}]
    assert [line["epsilon"] for line in lines] == [lines[0]["epsilon"]] * 2
    assert problems(out) == []


def test_sites_evaluate_on_their_own_records(config, tmp_path):
    config = change(
        config,
        privacy={"epsilon": 20.0},
        evaluation={"every": 2, "holdout": 0.4, "epsilon": 12.0, "parts": "label"},
    )
    summary = simulate(config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    assert [line["round"] for line in lines if line["site_metrics"]] == [2, 3]
    assert summary.site_metrics == lines[-1]["site_metrics"]
    assert 0 <= summary.site_metrics["accuracy"] <= 1
    assert summary.site_metrics["accuracy_noise"] > 0
    assert ["site_parts" in line for line in lines] == [False, False, True, True]
    assert set(lines[-1]["site_parts"]) == set(summary.site_quality["label"])
    for name, told in summary.site_quality["label"].items():
        assert told == {
            when: lines[at]["site_parts"][name] for when, at in (("first", 2), ("last", 3))
        }
    assert 19 < summary.privacy["epsilon"] <= 20


def test_a_failed_evaluation_at_the_sites_does_not_lose_the_run(
    config, tmp_path, monkeypatch, capsys
):
    def fail(*args):
        raise RuntimeError("private words")

    monkeypatch.setattr("fedllm.federation.site.work.scores_of_units", fail)
    config = change(config, evaluation={"every": 1, "holdout": 0.4})
    summary = simulate(config, tmp_path / "run")
    assert summary.rounds == 3
    assert summary.site_metrics == {}
    assert "no evaluation at the sites after round 3: " in capsys.readouterr().err


def test_relative_paths_count_from_the_working_directory(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = change(config, data={"train": "train.jsonl", "test": "test.jsonl"})
    assert simulate(relative, Path("deep/run")).rounds == 3


def test_training_without_privacy_learns_the_task(config, tmp_path):
    better = change(config, rounds={"count": 8}, training={"local_steps": 8, "batch_size": 30})
    summary = simulate(better, tmp_path / "run")
    assert summary.metrics["accuracy"] > summary.metrics_before["accuracy"] + 0.2


def test_encryption_and_engine_change_nothing_but_who_sees_what(config, tmp_path):
    whole = simulate(config, tmp_path / "a").adapter_sha256
    for name, encryption in {
        "none": {"scheme": "none"},
        "no masks": {"masks": False},
        "no recovery": {"recover_dropouts": False},
    }.items():
        other = simulate(change(config, encryption=encryption), tmp_path / name)
        assert other.adapter_sha256 == whole, name


@pytest.mark.slow
def test_ray_gives_the_same_adapter(config, tmp_path):
    here = simulate(config, tmp_path / "here")
    ray = simulate(config, tmp_path / "ray", engine="ray")
    assert ray.adapter_sha256 == here.adapter_sha256
    assert ray.metrics == here.metrics


def uncut(config: RunConfig, cut: Path):
    """Return what a run comes to that was not cut off, and whose same attempt failed."""
    attempt, whole = attempt_under_way(cut), cut.with_name("whole")
    return with_a_failed_attempt(attempt, lambda: simulate(config, whole))


def test_a_run_that_goes_on_keeps_its_policy_unless_another_is_given(config, tmp_path):
    out = tmp_path / "cut"
    allow = {"non_private": True, "min_cohort": 2, "masks": "optional", "encryption": "optional"}
    policy = SitePolicy.model_validate({"allow": allow, "budget": {"epsilon": 7.5}})
    with pytest.raises(KeyboardInterrupt):
        simulate(config, out, policy=policy, observers=[StopAfter(1)])
    simulate(config, out, resume=True)
    assert load_site_policy(out / names.POLICY_TOML).budget == policy.budget


def test_an_interrupted_run_goes_on_to_the_same_adapter(config, tmp_path):
    out = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        simulate(config, out, observers=[StopAfter(2)])
    whole = uncut(config, out)
    summary = simulate(config, out, resume=True)
    assert summary.adapter_sha256 == whole.adapter_sha256
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"privacy": {"epsilon": 1.0}}, []),
        ({}, ["no differential privacy"]),
        ({"encryption": {"scheme": "none"}}, ["no differential privacy", "in clear"]),
        ({"encryption": {"scheme": "ckks"}}, ["no differential privacy", "no masks"]),
    ],
)
def test_a_run_says_loudly_what_it_gives_up(config, sections, words):
    warnings = given_up(change(config, **sections))
    assert len(warnings) == len(words)
    assert all(word in warning for word, warning in zip(words, warnings, strict=True))


def test_a_delta_that_promises_little_is_said(config):
    weak = change(config, privacy={"epsilon": 6.0, "delta": 0.01})
    assert weak_delta(weak, []) == []
    assert weak_delta(weak, [98, 99]) == []
    # The larger a site, the more records a delta may give away.
    for sites in ([5, 100], [100, 100]):
        (words,) = weak_delta(weak, sites)
        assert "delta 0.01 is not below 1/100" in words
    assert weak_delta(change(weak, privacy={"epsilon": None}), [1000]) == []


def test_a_batch_far_above_what_sites_draw_is_said(config):
    shared = {"optimizer": "sgd", "local_steps": 1, "sampling_rate": 0.4}
    wide = change(config, training={**shared, "batch_size": 100_000})
    (words,) = odd_batch(wide, [300, 200])
    assert "the largest site has 300 records" in words
    assert "draws 120 of them" in words
    assert "833 times smaller" in words
    assert "near 120" in words
    near = change(config, training={**shared, "batch_size": 480})
    assert odd_batch(near, [300, 200]) == []
    (words,) = odd_batch(change(config, training={**shared, "batch_size": 481}), [300, 200])
    assert "steps are 4 times smaller" in words
    # Of hardly any record a step draws one, not none.
    few = {**shared, "sampling_rate": 0.001}
    assert odd_batch(change(config, training={**few, "batch_size": 4}), [300]) == []
    (words,) = odd_batch(change(config, training={**few, "batch_size": 5}), [300])
    assert "draws 0 of them: steps are 5 times smaller" in words
    assert "near 1" in words
    assert odd_batch(near, []) == []
    assert odd_batch(change(wide, training={"sampling_rate": None}), [300]) == []


def test_a_batch_that_needs_finer_levels_is_named_before_them(config, tmp_path):
    said = []
    wide = change(
        config,
        privacy={"epsilon": 6.0, "noise": "distributed"},
        training={
            "optimizer": "sgd",
            "local_steps": 1,
            "sampling_rate": 0.4,
            "batch_size": 100_000,
        },
    )
    observer = PlainObserver()
    observer.note = said.append
    with pytest.raises(ConfigError, match="too coarse") as caught:
        simulate(wide, tmp_path / "run", observers=[observer])
    assert caught.value.remedy.startswith("lower training.batch_size")
    assert any("training.batch_size = 100000, but" in words for words in said)


def test_a_resumed_run_has_the_labels_and_the_test_file_that_it_began_with(config, tmp_path):
    """A file of the same name would give the head's rows to other classes."""
    out, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    with pytest.raises(KeyboardInterrupt):
        simulate(config, out, observers=[StopAfter(2)])
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    elsewhere.mkdir()
    test = elsewhere / "test.jsonl"
    moved = change(config, data={"test": str(test)})
    lines = Path(config.data.test).read_text()
    for text, words in (
        (lines.replace('"one"', '"zero"'), "another set of labels"),
        (lines.replace('"one"', '"1"'), "another set of labels"),
        (lines + lines, "another public test file"),
    ):
        test.write_text(text)
        with pytest.raises(ConfigError, match=words) as caught:
            simulate(moved, out, resume=True)
        assert "that the run began with" in caught.value.remedy
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    test.write_text(lines)
    assert simulate(moved, out, resume=True).rounds == 3


def test_a_server_optimizer_resumes_with_its_state(config, tmp_path):
    adam = change(config, rounds={"optimizer": "adam", "learning_rate": 0.02})
    with pytest.raises(KeyboardInterrupt):
        simulate(adam, tmp_path / "cut", observers=[StopAfter(3)])
    whole = uncut(adam, tmp_path / "cut")
    assert simulate(adam, tmp_path / "cut", resume=True).adapter_sha256 == whole.adapter_sha256


def test_a_ledger_that_went_back_between_two_starts_is_told(config, tmp_path, capsys):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        simulate(config, out, observers=[StopAfter(2)])
    (one, *_) = read_heads(out / HEADS_FILE)["site-01"]
    later = Head(one.sequence + 40, "0" * 64, one.signature)
    keep_heads(out / HEADS_FILE, "run", 1, {"site-01": later})
    simulate(config, out, resume=True, observers=[PlainObserver()])
    said = "".join(capsys.readouterr())
    assert said.count("the ledger of 'site-01' is not the one") == 1
    assert "the ledger of 'site-00'" not in said


def test_the_ledger_holds_the_cost_of_an_interrupted_round(config, tmp_path):
    private = change(config, privacy={"epsilon": 6.0})
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        simulate(private, out, observers=[StopAfter(2, sites=2)])
    counts = {
        name: len(next(iter(book.verify().accounts)).runs) for name, book in ledgers(out).items()
    }
    assert set(counts.values()) == {1}
    (run,) = next(iter(ledgers(out)["site-00"].verify().accounts)).runs
    before = {n: len(book.events_of_run(run.run)) for n, book in ledgers(out).items()}
    assert before == {"site-00": 2, "site-01": 2, "site-02": 1}
    summary = simulate(private, out, resume=True)
    after = {n: len(book.events_of_run(run.run)) for n, book in ledgers(out).items()}
    assert after == {"site-00": 4, "site-01": 4, "site-02": 3}
    assert all(value <= 6.0 for value in summary.privacy["sites"].values())
    assert problems(out) == []


def test_a_second_run_on_the_same_records_is_refused_at_the_ceiling(config, tmp_path):
    private = change(config, privacy={"epsilon": 6.0})
    simulate(private, tmp_path / "first", ledgers=tmp_path / "home")
    assert problems(tmp_path / "first", tmp_path / "home") == []
    with pytest.raises(BudgetError, match="would bring the site's account to epsilon") as caught:
        simulate(private, tmp_path / "second", ledgers=tmp_path / "home")
    assert caught.value.exit_code == 3
    assert not (tmp_path / "second" / "adapter").exists()


def test_resume_refuses_another_configuration(config, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        simulate(config, tmp_path / "run", observers=[StopAfter(2)])
    with pytest.raises(
        ConfigError, match=r"another configuration than the one given now: lora\.rank"
    ):
        simulate(change(config, lora={"rank": 4}), tmp_path / "run", resume=True)
    written = tmp_path / "run" / "run.toml"
    written.write_text(to_toml(change(load_run_config(written), lora={"rank": 4})))
    with pytest.raises(ConfigError, match=r"run\.toml was changed after the run had begun") as one:
        simulate(load_run_config(written), tmp_path / "run", resume=True)
    assert "resume with the configuration file that the run was begun with" in one.value.remedy


def test_ledgers_that_cannot_be_written_are_refused_before_the_model_is_loaded(config, tmp_path):
    (tmp_path / "file").touch()
    heard = Listener()
    with pytest.raises(ConfigError, match="--ledgers"):
        simulate(config, tmp_path / "out", ledgers=tmp_path / "file", observers=[heard])
    assert [text.split()[0] for text in heard.said] == ["reading"]


def test_a_used_folder_is_not_overwritten(config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        simulate(config, tmp_path / "run")
    with pytest.raises(ConfigError, match="no run to resume"):
        simulate(config, tmp_path / "other", resume=True)


def test_a_damaged_checkpoint_is_named(config, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        simulate(config, out, observers=[StopAfter(3)])
    state = out / "checkpoints" / "round-00002" / "state.npz"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    with pytest.raises(CheckpointError, match="round-00002 is damaged") as caught:
        simulate(config, out, resume=True)
    assert "remove that folder" in str(caught.value)


def test_a_site_with_fewer_records_than_a_batch_takes_all_of_them(config, tmp_path):
    big = change(config, training={"batch_size": 1000}, privacy={"epsilon": 6.0})
    simulate(big, tmp_path / "run")
    ledger = ledgers(tmp_path / "run")["site-00"]
    (run,) = next(iter(ledger.verify().accounts)).runs
    assert {event.sampling_rate for event in ledger.events_of_run(run.run)} == {1.0}


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (None, DataError, "train.jsonl"),
        ("", DataError, "train.jsonl"),
        ('{"txt": "a", "label": "one"}\n', DataError, "text"),
        (
            '{"text": "my card", "label": "four"}\n' * 9,
            DataError,
            "train.jsonl row 1: field 'label'",
        ),
        (
            '{"text": "my card", "label": "one"}\nnonsense\n' * 5,
            DataError,
            "train.jsonl row 2 (line 2)",
        ),
    ],
)
def test_bad_training_data_is_named(config, tmp_path, content, error, words):
    path = Path(config.data.train)
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(error) as caught:
        simulate(config, tmp_path / "run")
    assert words in str(caught.value)
    assert caught.value.exit_code == 2
    write_jsonl(path, records(30))
    assert simulate(config, tmp_path / "run").rounds == 3, "mended data, same command"


def test_a_diverging_run_fails_and_keeps_its_last_checkpoint(config, tmp_path):
    wild = change(
        config,
        training={
            "optimizer": "sgd",
            "learning_rate": 1e30,
            "head_learning_rate": 1e30,
            "local_steps": 3,
        },
    )
    with pytest.raises(TrainingError):
        simulate(wild, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "round-00000").exists()


def charged(out: Path) -> dict[str, int]:
    return {name: len(ledger.events("")) for name, ledger in ledgers(out).items()}


def test_noise_beyond_the_learning_rate_is_told_before_anything_more_is_charged(config, tmp_path):
    out = tmp_path / "run"
    hidden = change(
        config,
        privacy={"epsilon": 1e-6},
        training={"optimizer": "sgd", "learning_rate": 10.0, "head_learning_rate": 10.0},
    )
    for resume in (False, True):
        with pytest.raises(TrainingError, match="too large for this learning rate") as caught:
            simulate(hidden, out, resume=resume)
        assert "privacy.epsilon" in caught.value.remedy
        assert "learning_rate" in caught.value.remedy
        assert set(charged(out).values()) == {1}
    assert (out / "checkpoints" / "round-00001").exists()
    assert [json.loads(x)["round"] for x in (out / "metrics.jsonl").open()] == [0, 1]


def test_a_full_disk_stops_the_run_without_harm(config, tmp_path, monkeypatch):
    import errno

    import fedllm.runs.checkpoints as module

    write = module.write_bytes
    calls = []

    def full(path, content, mode=0o644):
        calls.append(path)
        if len(calls) == 4:
            from fedllm.files import _failure

            raise _failure(path, OSError(errno.ENOSPC, "No space left on device"))
        write(path, content, mode)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_bytes", full)
        with pytest.raises(Exception, match="No space left"):
            simulate(config, tmp_path / "run")
    whole = uncut(config, tmp_path / "run")
    again = simulate(config, tmp_path / "run", resume=True)
    assert again.adapter_sha256 == whole.adapter_sha256


def fedllm(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fedllm", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=900, check=False, **options
    )


def test_exit_codes_and_machine_readable_output(config, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(to_toml(config))
    done = fedllm("simulate", str(path), "--out", str(tmp_path / "run"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rounds"] == 3
    assert "round 3/3" in done.stderr
    wrong = fedllm("simulate", str(path), "--set", "privacy.epsilno=3")
    assert wrong.returncode == 2
    assert "did you mean 'privacy.epsilon'" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    policy = tmp_path / "site.toml"
    policy.write_text("[budget]\nepsilon = 1\n[allow]\nmin_cohort = 2\n")
    refused = fedllm(
        "simulate",
        str(path),
        "--set",
        "privacy.epsilon=3",
        "--policy",
        str(policy),
        "--out",
        str(tmp_path / "refused"),
    )
    assert refused.returncode == 3, refused.stderr
    assert "its ceiling is 1" in refused.stderr


DIES_IN_ROUND_3 = """
import os, signal, sys
from pathlib import Path
from fedllm.config import load_run_config
from fedllm.runs.terminal import PlainObserver
from fedllm_server.simulation import simulate

class Dies(PlainObserver):
    def site_answered(self, round, site, answered, sites):
        if (round, answered) == (3, 2):
            os.kill(os.getpid(), signal.SIGKILL)

simulate(load_run_config(Path(sys.argv[1])), Path(sys.argv[2]), observers=[Dies()])
"""


def test_kill_9_in_a_round_and_resume(config, tmp_path):
    out, path = tmp_path / "run", tmp_path / "run.toml"
    long = change(config, rounds={"count": 5})
    path.write_text(to_toml(long))
    died = subprocess.run([sys.executable, "-c", DIES_IN_ROUND_3, path, out], check=False)
    assert died.returncode == -signal.SIGKILL
    assert (out / "checkpoints" / "round-00002").exists()
    whole = uncut(long, out)
    cut = simulate(long, out, resume=True)
    assert cut.adapter_sha256 == whole.adapter_sha256


def test_two_processes_do_not_share_a_folder(config, tmp_path):
    import fcntl

    out = tmp_path / "run"
    out.mkdir()
    with (out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process"):
            simulate(config, out)


def test_the_instruction_task_runs_on_a_causal_model(tiny_checkpoint, tmp_path):
    rows = [json.dumps({"prompt": f"my {w}", "response": f"pay {w} fee"}) for w in ("card", "loan")]
    (tmp_path / "t.jsonl").write_text("\n".join(rows * 20))
    config = small_config(
        tiny_checkpoint("llama"),
        task="instruction",
        data={
            "train": str(tmp_path / "t.jsonl"),
            "test": str(tmp_path / "t.jsonl"),
            "labels": None,
        },
        model={"max_length": 32},
        rounds={"count": 3},
        training={"learning_rate": 0.05, "local_steps": 5},
    )
    summary = simulate(
        config,
        tmp_path / "run",
        policy=SitePolicy.model_validate({"allow": {"non_private": True, "min_cohort": 2}}),
    )
    assert summary.metrics["loss"] < summary.metrics_before["loss"]
    assert np.isfinite(summary.metrics["perplexity"])


def test_names_are_found_and_what_sites_hold_out_says_so_too(tiny_checkpoint, tmp_path):
    rows = []
    for i in range(60):
        before, name = ("my", "send", "pay")[i % 3], ("bank", "loan", "rate")[i % 5 % 3]
        start = len(before) + 1
        span = {"start": start, "end": start + 4, "label": "one" if name == "bank" else "two"}
        marked = [] if name == "rate" else [span]
        rows.append(json.dumps({"text": f"{before} {name} fee", "spans": marked}))
    (tmp_path / "t.jsonl").write_text("\n".join(rows))
    config = small_config(
        tiny_checkpoint("bert"),
        task="token_classification",
        data={
            "train": str(tmp_path / "t.jsonl"),
            "test": str(tmp_path / "t.jsonl"),
            "labels": None,
        },
        rounds={"count": 4},
        training={"learning_rate": 0.01, "local_steps": 8},
        evaluation={"every": 4, "holdout": 0.3},
    )
    policy = SitePolicy.model_validate({"allow": {"non_private": True, "min_cohort": 2}})
    summary = simulate(config, tmp_path / "run", policy=policy)
    assert summary.metrics["f1"] > max(summary.metrics_before["f1"], 0.5)
    assert {"f1_one", "f1_two", "recall", "precision"} <= set(summary.metrics)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    told = json.loads(lines[-1])["site_metrics"]
    # Which of the few records a site holds out hangs on its key.
    assert 0.0 < told["f1"] <= 1.0
    assert told["f1_noise"] == 0.0
    # Who is held out hangs on the sites' keys, and so whether one of them has no span.
    assert 0 < told["gold_spans"] <= 1.0
    assert "f1 " in describe_round(read_reports(tmp_path / "run" / "metrics.jsonl")[-1], 4)


class Listener(PlainObserver):
    """Keeps what a person is told."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def clinics(config, tmp_path) -> RunConfig:
    rows = [
        {**row.values, "clinic": ("Südklinik", "北京医院", "north")[i // 30]}
        for i, row in enumerate(records(90))
    ]
    path = tmp_path / "clinics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return change(
        config,
        data={"train": str(path), "site": "clinic"},
        rounds={"count": 2},
        training={
            "local_steps": 1, "optimizer": "sgd", "sampling_rate": 0.5, "learning_rate": 1.0
        },
        privacy={"epsilon": 8.0, "noise": "distributed"},
    )  # fmt: skip


def test_sites_with_names_in_any_script_are_shown_by_them(clinics, tmp_path):
    out, listener = tmp_path / "run", Listener()
    summary = simulate(clinics, out, observers=[listener])
    safe = {"Sudklinik": "Südklinik", "site-077bf4a77f3d": "北京医院"}
    assert summary.site_titles == safe
    assert json.loads((out / "summary.json").read_text())["site_titles"] == safe
    assert set(summary.site_names) == {*safe, "north"}
    assert "北京医院 (site-077bf4a77f3d)" in summary.describe(out)
    report = (out / "report.html").read_text()
    assert "北京医院 (site-077bf4a77f3d)" in report
    twin = json.loads((out / "report.json").read_text())
    assert {site["name"]: site["title"] for site in twin["who"]["sites"]} == {
        **safe, "north": ""
    }  # fmt: skip
    # What colluders learn is that of the ledgers.
    spent = [ledger.verify().accounts[0] for ledger in ledgers(out).values()]
    assert summary.privacy["colluders_epsilon"] == pytest.approx(
        max(data.spent_against_colluders.value for data in spent)
    )
    assert summary.privacy["colluders_epsilon"] > summary.privacy["epsilon"]


def test_what_the_records_have_spent_is_said_before_a_run_and_where_it_goes_on(clinics, tmp_path):
    shared = tmp_path / "ledgers"
    # One attempt lost of a few leaves noise that fits the levels.
    clinics = clinics.model_copy(update={"rounds": clinics.rounds.model_copy(update={"count": 6})})
    new = Listener()
    with pytest.raises(KeyboardInterrupt):
        simulate(clinics, tmp_path / "a", ledgers=shared, observers=[new, StopAfter(2)])
    assert any("know of no earlier spending" in text for text in new.said)
    going_on = Listener()
    simulate(clinics, tmp_path / "a", ledgers=shared, resume=True, observers=[going_on])
    (text,) = [text for text in going_on.said if "already spent" in text]
    assert text.startswith("going on with round 2 of 6; already spent by these sites")
    spent = float(text.split("epsilon ")[1].split()[0])
    assert 1.0 < spent <= 8.0
    assert "of a ceiling of 8 at delta 1e-05" in text
    again = Listener()
    with pytest.raises(BudgetError):
        simulate(clinics, tmp_path / "b", ledgers=shared, observers=[again])
    (text,) = [text for text in again.said if "already spent" in text]
    assert text.startswith("already spent by these sites")
    assert float(text.split("epsilon ")[1].split()[0]) >= spent
    # What takes a while is said before it begins.
    steps = ("reading the records", "loading the model", "already spent", "asking 3 sites")
    places = [next(i for i, t in enumerate(again.said) if t.startswith(s)) for s in steps]
    assert places == sorted(places)


def test_what_a_site_has_is_counted_in_the_runs_unit(config):
    from fedllm_server.simulation import _units

    own = {"anne": records(6, unit=lambda i: f"person {i % 2}"), "bob": records(3)}
    assert _units(config, own) == [6, 3]
    people = SimpleNamespace(unit="person")
    assert _units(people, own) == [2, 1]
    assert _units(SimpleNamespace(unit="site"), own) == [2]


def test_progress_of_an_attempt_without_a_checkpoint_is_forgotten_and_no_other(
    tiny_checkpoint, tmp_path
):
    from fedllm_server.simulation import _write_request

    config, policy = small_config(tiny_checkpoint("bert")), SitePolicy()
    progress = tmp_path / names.PROGRESS
    for state, kept in ((object(), True), (None, False)):
        progress.write_text("{}\n")
        _write_request(SimpleNamespace(out=tmp_path, state=state, config=config, policy=policy))
        assert progress.exists() is kept
    # Also where there never was one.
    _write_request(SimpleNamespace(out=tmp_path, state=None, config=config, policy=policy))
    assert (tmp_path / names.POLICY_TOML).exists()
