from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from fedllm.at_rest.keyring import Lock
from fedllm.at_rest.stream import SealedError
from fedllm.at_rest.vault import Vault
from fedllm.errors import CheckpointError
from fedllm.identity.keys import Identity
from fedllm.runs.checkpoints import (
    FILES,
    PURPOSE,
    Good,
    RunState,
    begun_with,
    load_checkpoint,
    newest_round,
    save_checkpoint,
    seal_checkpoints,
)
from fedllm.runs.metrics import RoundReport


def state(number: int) -> RunState:
    return RunState(
        "run",
        number,
        (0.0, 1.5),
        "digest",
        np.arange(5, dtype=np.float32) + number,
        {"first": np.ones(5), "steps": np.array(3.0)},
    )


def test_the_newest_checkpoint_comes_back_whole(tmp_path):
    assert load_checkpoint(tmp_path) is None
    for number in range(4):
        save_checkpoint(tmp_path, state(number))
    found = load_checkpoint(tmp_path)
    assert (found.run, found.round, found.noise) == ("run", 3, (0.0, 1.5))
    assert np.array_equal(found.adapter, state(3).adapter)
    assert set(found.optimizer) == {"first", "steps"}
    assert found.optimizer["steps"] == 3.0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["round-00002", "round-00003"]


@pytest.mark.parametrize("name", ["state.npz", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "remove", "empty"])
def test_any_damage_is_noticed(tmp_path, name, damage):
    path = save_checkpoint(tmp_path, state(1)) / name
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        content[10] ^= 1
        path.write_bytes({"cut": content[:-9], "flip": content, "empty": b""}[damage])
    with pytest.raises(CheckpointError, match="round-00001 is damaged"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("round", "1e999"),
        ("round", "1" + "0" * 400),
        ("noise", "[1e999]"),
        ("noise", "[1" + "0" * 400 + "]"),
        ("run", '"\\ud800"'),
        ("report", '{"round": 1, "update_norm": 1e999}'),
        ("good", '{"round": 1, "loss": 1e999}'),
        ("good", '{"round": 1}'),
        ("good", '{"round": 0, "loss": 2.5}'),
        ("good", "7"),
    ],
)
def test_numbers_and_texts_that_are_none_are_damage(tmp_path, key, value):
    path = save_checkpoint(tmp_path, state(1)) / "state.json"
    header = {**json.loads(path.read_text()), key: "@"}
    path.write_text(json.dumps(header).replace('"@"', value))
    with pytest.raises(CheckpointError, match="round-00001 is damaged"):
        load_checkpoint(tmp_path)


def test_what_is_known_of_the_last_round_comes_back(tmp_path):
    report = RoundReport(round=2, sites=3, dropped={"a": "late"}, update_norm=float("nan"))
    known = {"labels": ("b", "a"), "test": "e" * 64}
    save_checkpoint(tmp_path, replace(state(2), model="f" * 64, report=report, **known))
    found = load_checkpoint(tmp_path)
    assert (found.labels, found.test) == (("b", "a"), "e" * 64)
    assert found.model == "f" * 64
    assert found.report == report
    assert found.report.update_norm is None


def test_a_checkpoint_of_an_earlier_version_is_read(tmp_path):
    path = save_checkpoint(tmp_path, state(1)) / "state.json"
    header = json.loads(path.read_text())
    del header["model"], header["report"], header["labels"], header["test"]
    path.write_text(json.dumps(header))
    found = load_checkpoint(tmp_path)
    assert (found.model, found.report, found.labels, found.test) == ("", None, None, None)


def test_a_crash_between_two_renames_loses_no_checkpoint(tmp_path):
    save_checkpoint(tmp_path, state(1))
    path = save_checkpoint(tmp_path, state(2))
    path.rename(path.with_name("round-00002.old"))
    assert newest_round(tmp_path) == 2
    assert load_checkpoint(tmp_path).round == 2
    assert path.exists()


@pytest.mark.parametrize("number", [2, 4])
def test_what_a_run_goes_back_to_comes_back_and_is_stored_once(tmp_path, number):
    before = state(number)
    good = Good(number, 1.25, before.adapter, before.optimizer)
    path = save_checkpoint(tmp_path, replace(state(4), good=good))
    found = load_checkpoint(tmp_path)
    assert (found.good.round, found.good.loss) == (number, 1.25)
    for kept, right in ((found.good, before), (found, state(4))):
        assert np.array_equal(kept.adapter, right.adapter)
        assert kept.optimizer.keys() == right.optimizer.keys()
        assert np.array_equal(kept.optimizer["first"], right.optimizer["first"])
    with np.load(path / "state.npz") as stored:
        assert ("good.adapter" in stored.files) == (number != 4)


@pytest.fixture
def coordinator(tmp_path):
    """A vault in a folder ``state``, and the checkpoints of a run in it."""
    vault = Vault.of(tmp_path / "state", Identity.generate("coordinator"))
    return vault, tmp_path / "state" / "runs" / "bank" / "checkpoints"


def test_a_sealed_checkpoint_comes_back_whole_and_tells_nothing_of_the_adapter(coordinator):
    vault, folder = coordinator
    path = save_checkpoint(folder, state(1), vault)
    assert sorted(p.name for p in path.iterdir()) == ["state.json", "state.sealed"]
    assert state(1).adapter.tobytes() not in (path / "state.sealed").read_bytes()
    found = load_checkpoint(folder, vault)
    assert np.array_equal(found.adapter, state(1).adapter)
    assert found.optimizer["steps"] == 3.0
    # Who has not the key can tell which run it is.
    assert begun_with(folder) == "digest"
    with pytest.raises(SealedError, match="is sealed with the keys"):
        load_checkpoint(folder)


def test_a_sealed_checkpoint_is_of_its_round_run_and_readable_part(coordinator):
    vault, folder = coordinator
    first, second = (save_checkpoint(folder, state(number), vault) for number in (1, 2))
    whole = (second / "state.sealed").read_bytes()
    (second / "state.sealed").write_bytes((first / "state.sealed").read_bytes())
    with pytest.raises(SealedError):
        load_checkpoint(folder, vault)
    (second / "state.sealed").write_bytes(whole)
    header = second / "state.json"
    header.write_text(header.read_text().replace("1.5", "2.5"))
    with pytest.raises(SealedError, match=r"state.json is not what was written"):
        load_checkpoint(folder, vault)


def test_a_checkpoint_in_clear_is_not_taken_where_they_are_sealed(coordinator):
    vault, folder = coordinator
    save_checkpoint(folder, state(1))
    with pytest.raises(SealedError, match="is in clear"):
        load_checkpoint(folder, vault)
    (sealed,) = seal_checkpoints(folder.parents[2], vault)
    assert sealed == folder / "round-00001" / "state.sealed"
    assert not (folder / "round-00001" / "state.npz").exists()
    assert np.array_equal(load_checkpoint(folder, vault).adapter, state(1).adapter)
    assert seal_checkpoints(folder.parents[2], vault) == []


def test_keys_of_checkpoints_are_exchanged(coordinator, tmp_path):
    vault, folder = coordinator
    save_checkpoint(folder, state(1), vault)
    before = (folder / "round-00001" / "state.sealed").read_bytes()
    assert vault.rekey(Lock("own"), vault.keys.current, [(FILES, PURPOSE)]) == []
    assert (folder / "round-00001" / "state.sealed").read_bytes() != before
    assert load_checkpoint(folder, vault).round == 1
