"""Members are told by each model itself, and what cannot be told apart is refused."""

from __future__ import annotations

import numpy as np
import pytest
from compression.report.test_report import damaged, no_process, reported, write
from exporting.conftest import LABELS, finished, tiny
from support.tiny_models import WORDS

from fedllm.commands.compress_report import _attack
from fedllm.compression.report.membership import Attack
from fedllm.compression.report.page import write_report
from fedllm.errors import ConfigError, DataError
from fedllm.exporting.export import export
from fedllm.serving.usable import open_usable

__all__ = ["finished", "no_process", "tiny"]

# Settings by which shadows learn their records by heart.
BY_HEART = {
    "rounds": {"count": 2},
    "privacy": {"epsilon": None},
    "training": {
        "local_steps": 15,
        "sampling_rate": 1.0,
        "learning_rate": 0.05,
        "optimizer": "adam",
        "microbatch_size": 256,
    },
}
PLAIN = {"rounds": {"count": 1}, "privacy": {"epsilon": None}}


def labelled(run, path, seed, wrong):
    """Sixty texts with the labels that the model gives them, or with others."""
    generator = np.random.default_rng(seed)
    lines = [" ".join(generator.choice(WORDS, 8)) for _ in range(60)]
    said = [one.answer for one in open_usable(run).predicting.predict(lines)]
    labels = [LABELS[(LABELS.index(label) + wrong) % 3] for label in said]
    return write(path, [{"text": t, "label": s} for t, s in zip(lines, labels, strict=True)])


def without_head(folder, new):
    return damaged(folder, new, "head.safetensors", lambda t: [v.zero_() for v in t.values()])


@pytest.mark.slow
def test_who_knows_members_is_told_and_who_knows_nothing_is_not(finished, tmp_path, no_process):
    run = finished("bert", trained=1.0, **BY_HEART)
    members = labelled(run, tmp_path / "members.jsonl", 0, 0)
    others = labelled(run, tmp_path / "others.jsonl", 1, 1)
    export(run, tmp_path / "merged", "merged")
    empty = without_head(tmp_path / "merged", tmp_path / "empty")
    told, _ = reported(run, [empty], members, tmp_path / "out", Attack(2, members, others))
    found = {one.name: one.auc for one in told.membership.models}
    # Members are what the model is right about, and others what it is wrong about.
    assert found["run"] > 0.7
    assert found["empty"] < 0.65


def test_each_model_is_attacked_itself_and_shadows_are_trained_once(finished, tmp_path, no_process):
    run = finished("bert", **PLAIN)
    members = labelled(run, tmp_path / "members.jsonl", 0, 0)
    others = labelled(run, tmp_path / "others.jsonl", 1, 1)
    export(run, tmp_path / "merged", "merged")
    empty = without_head(tmp_path / "merged", tmp_path / "empty")
    given, attack = [tmp_path / "merged", empty], Attack(1, members, others)
    told, heard = reported(run, given, members, tmp_path / "out", attack)
    assert heard.count("shadow models") == 2
    of_run, of_merged, of_empty = told.membership.models
    assert [one.name for one in told.membership.models] == ["run", "merged", "empty"]
    # The same weights are told as well; a head of zeros is as sure of all records.
    assert of_merged.true_positive == of_run.true_positive
    assert of_empty.true_positive != of_run.true_positive
    assert (told.membership.members, told.membership.others) == (60, 60)
    page = write_report(told, tmp_path / "out").read_text()
    assert "before training" in page
    assert page.count("<svg role") == 3
    again, heard = reported(run, given, members, tmp_path / "out", attack)
    assert again.membership == told.membership
    assert "shadow models" not in heard
    other = labelled(run, tmp_path / "others.jsonl", 2, 1)
    _, heard = reported(run, given, members, tmp_path / "out", Attack(1, members, other))
    assert "shadow models" in heard


@pytest.mark.slow
def test_a_runs_own_records_are_told_apart_as_its_audit_does(finished, tmp_path, no_process):
    plain = finished("bert", name="plain")
    train = labelled(plain, tmp_path / "train.jsonl", 0, 0)
    test = labelled(plain, tmp_path / "test.jsonl", 1, 1)
    run = finished("bert", data={"train": train, "test": test, "labels": list(LABELS)}, **PLAIN)
    export(run, tmp_path / "merged", "merged")
    told, _ = reported(run, [tmp_path / "merged"], test, tmp_path / "out", Attack(1))
    assert told.membership.members == told.membership.others == 60
    assert np.isfinite(told.membership.control.auc)


def test_what_cannot_be_attacked_is_refused(finished, tmp_path, no_process):
    run = finished("bert")
    members = labelled(run, tmp_path / "members.jsonl", 0, 0)
    export(run, tmp_path / "merged", "merged")
    quick = tmp_path / "small"
    export(run, quick, "merged")
    out = tmp_path / "out"
    with pytest.raises(DataError, match="60 records are members and others"):
        reported(run, [quick], members, out, Attack(1, members, members))
    few = write(tmp_path / "few.jsonl", [{"text": "card", "label": LABELS[0]}] * 20)
    with pytest.raises(DataError, match="20 others"):
        reported(run, [quick], members, out, Attack(1, members, few))
    with pytest.raises(ConfigError, match="is no run"):
        reported(tmp_path / "merged", [quick], members, out, Attack(1, members, members))
    with pytest.raises(ConfigError, match="no public test file"):
        reported(run, [quick], members, out, Attack(1))
    assert not (out / "measured").exists()


def test_members_are_told_from_others_only():
    assert _attack(None, None, None) is None
    assert _attack(2, None, None) == Attack(2)
    assert _attack(None, "a", "b") == Attack(4, "a", "b")
    for given in (("a", None), (None, "b")):
        with pytest.raises(ConfigError, match="from others only"):
            _attack(None, *given)
