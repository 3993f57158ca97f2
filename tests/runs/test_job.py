"""job.json and outcome.json: read as written, or refused by name."""

from __future__ import annotations

import pytest

from fedllm.errors import ConfigError
from fedllm.runs.job import Job, read_job, read_outcome, write_job, write_outcome


def test_a_job_comes_back(tmp_path):
    assert read_job(tmp_path) is None
    job = Job("run", "failed", "2026-01-01", 2, {"kind": "PeerError", "message": "m", "remedy": ""})
    write_job(tmp_path, job)
    assert read_job(tmp_path) == job


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"\xff",
        b"[" * 100_000,
        b"[]",
        b"{}",
        b'{"name": "a", "status": "done", "submitted": "x"}',
        b'{"name": "a", "status": "queued", "submitted": 3}',
        b'{"name": "a", "status": "queued", "submitted": "x", "starts": "1"}',
        b'{"name": "a", "status": "failed", "submitted": "x", "error": {"kind": 3}}',
    ],
)
def test_a_damaged_job_is_named(tmp_path, content):
    (tmp_path / "job.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"job\.json is damaged"):
        read_job(tmp_path)


def test_an_outcome_comes_back_and_a_damaged_one_is_a_death_without_a_word(tmp_path):
    assert read_outcome(tmp_path) is None
    write_outcome(tmp_path, None)
    assert read_outcome(tmp_path) == (None,)
    write_outcome(tmp_path, {"kind": "DataError", "message": "m"})
    assert read_outcome(tmp_path) == ({"kind": "DataError", "message": "m"},)
    for content in (b"{", b"\xff", b"{}", b'{"error": 3}'):
        (tmp_path / "outcome.json").write_bytes(content)
        assert read_outcome(tmp_path) is None
