"""The lines of metrics.jsonl: what is written is read, and what cannot be read is named."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedllm.errors import FedllmError
from fedllm.runs.metrics import RoundReport, append_report, cut_reports, read_reports


def test_reports_come_back_and_later_rounds_are_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for number in range(4):
        append_report(path, RoundReport(round=number, sites=2, metrics={"loss": float("nan")}))
    assert [r.round for r in read_reports(path)] == [0, 1, 2, 3]
    assert read_reports(path)[0].metrics == {"loss": None}
    cut_reports(path, 1)
    assert [r.round for r in read_reports(path)] == [0, 1]
    path.write_text(path.read_text() + "{ half")
    with pytest.raises(FedllmError, match=r"line 3.*cut off") as caught:
        read_reports(path)
    assert "--resume" in caught.value.remedy
    assert [r.round for r in cut_reports(path, 5)] == [0, 1]
    assert path.read_text().count("\n") == 2


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"\xff\xfe", "UTF-8"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"round": NaN}', "not valid JSON"),
        (b'{"round": 1, "round": 2}', "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", "'round' is not a whole number"),
        (b'{"round": true}', "'round' is not a whole number"),
        (b'{"round": 1, "bytes_up": "many"}', "'bytes_up'"),
        (b'{"round": 1, "epsilon": {"site-00": "x"}}', "'epsilon' holds under 'site-00'"),
        (b'{"round": 1, "site_parts": {"one": 3}}', "'site_parts' is not a table of tables"),
        (b'{"round": 1, "site_parts": {"one": {"loss": ""}}}', "'site_parts' is not a table of"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, says):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"round": 0}\n' + line + b'\n{"round": 7}\n')
    for read in (read_reports, lambda p: cut_reports(p, 5)):
        with pytest.raises(FedllmError, match="line 2") as caught:
            read(path)
        assert says in caught.value.message
        assert caught.value.remedy


def test_a_line_of_a_later_version_is_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"round": 0, "sites": 0, "colour": "blue"}\n')
    assert read_reports(path) == [RoundReport(round=0)]


numbers = st.dictionaries(st.text(max_size=5), st.floats(), max_size=3)


@given(numbers, numbers, st.floats(), st.dictionaries(st.text(max_size=5), st.text(max_size=9)))
def test_whatever_is_written_is_read(tmp_path_factory, metrics, epsilon, norm, dropped):
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    report = RoundReport(
        round=3, metrics=metrics, epsilon=epsilon, update_norm=norm, dropped=dropped
    )
    append_report(path, report)
    assert read_reports(path) == [report]
    json.dumps(report.model_dump(), allow_nan=False)


def test_quality_by_part_is_written_where_it_is_told(tmp_path):
    path = tmp_path / "metrics.jsonl"
    told = RoundReport(round=2, site_parts={"one": {"loss": float("inf"), "units": 3.5}, "two": {}})
    for report in (RoundReport(round=1), told):
        append_report(path, report)
    assert "site_parts" not in path.read_text().splitlines()[0]
    assert read_reports(path)[1].site_parts == {"one": {"loss": None, "units": 3.5}, "two": {}}


def test_why_a_round_was_rejected_is_written_where_it_was(tmp_path):
    path = tmp_path / "metrics.jsonl"
    plain = RoundReport(round=1, norm_ratio=float("inf"))
    told = RoundReport(round=2, rejected={"test": "worse"}, kept_round=0, norm_ratio=0.0)
    for report in (plain, told):
        append_report(path, report)
    assert read_reports(path) == [plain, told]
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert not {"rejected", "kept_round", "norm_ratio"} & set(first)
    assert (second["rejected"], second["kept_round"], second["norm_ratio"]) == (
        {"test": "worse"}, 0, 0.0
    )  # fmt: skip


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ('"rejected": "worse"', "'rejected' is not a table of reasons"),
        ('"rejected": {"test": 3}', "'rejected' is not a table of reasons"),
        ('"kept_round": -1', "'kept_round' is not a whole number"),
        ('"norm_ratio": "large"', "'norm_ratio' is not a number"),
    ],
)
def test_a_verdict_that_cannot_be_read_is_named(tmp_path, value, words):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"round": 1, ' + value + "}\n")
    with pytest.raises(FedllmError, match=words):
        read_reports(path)
