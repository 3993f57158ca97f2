from __future__ import annotations

import numpy as np
import pytest

from fedllm.errors import CheckpointError
from fedllm_server.checkpoints import RunState, load_checkpoint, save_checkpoint
from fedllm_server.metrics import RoundReport, append_report, cut_reports, read_reports


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


def test_reports_come_back_and_later_rounds_are_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for number in range(4):
        append_report(path, RoundReport(number, 2, metrics={"loss": float("nan")}))
    assert [r.round for r in read_reports(path)] == [0, 1, 2, 3]
    assert read_reports(path)[0].metrics == {"loss": None}
    cut_reports(path, 1)
    assert [r.round for r in read_reports(path)] == [0, 1]
    path.write_text(path.read_text() + "{ half")
    with pytest.raises(CheckpointError, match="line 3"):
        read_reports(path)
