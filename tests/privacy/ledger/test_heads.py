from __future__ import annotations

import json

import pytest
from support.ledger import SIGNER, THIEF, filled

from fedllm.errors import ConfigError, PeerError
from fedllm.privacy.ledger.entries import Head
from fedllm.privacy.ledger.heads import keep_heads, read_heads, signed_head, went_back


@pytest.fixture
def head(tmp_path):
    return filled(tmp_path / "ledger.sqlite").head()


def test_only_what_the_site_signed_is_its_head(head):
    key = SIGNER.public_bytes()
    assert signed_head(str(head), head.signature, key, "site-00") == head
    for text, signature, signer in (
        ("", "", key),
        (str(head), "", key),
        (str(head), "zz", key),
        (str(head), "00" * 64, key),
        (str(head), head.signature, THIEF.public_bytes()),
        (f"{head.sequence}:{'0' * 64}", head.signature, key),
    ):
        with pytest.raises(PeerError, match="did not sign"):
            signed_head(text, signature, signer, "site-00")


def test_what_is_kept_can_be_read(head, tmp_path):
    path, earlier = tmp_path / "heads.jsonl", Head(3, "ab" * 32, "cd" * 64)
    keep_heads(path, "run", 1, {"b": earlier})
    keep_heads(path, "run", 2, {"b": head, "a": earlier})
    keep_heads(path, "run", 3, {})
    assert read_heads(path) == {"a": [earlier], "b": [earlier, head]}


def test_a_line_that_a_crash_cut_off_stops_nobody(head, tmp_path):
    path = tmp_path / "heads.jsonl"
    keep_heads(path, "run", 1, {"a": head})
    whole = path.read_bytes()
    for length in (1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole + whole[:length])
        assert read_heads(path) == {"a": [head]}
        keep_heads(path, "run", 2, {"a": head})
        assert path.read_bytes().count(b"\n") == 2
        assert read_heads(path) == {"a": [head, head]}


GOOD = {"site": "a", "head": f"1:{'ab' * 32}", "signature": "cd" * 64}


def with_change(**changes):
    return json.dumps(GOOD | changes)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{}",
        "[]",
        '"x"',
        "\x00",
        with_change(head="1:0"),
        with_change(signature="zz"),
        with_change(signature=None),
        with_change(site=7),
    ],
)
def test_damaged_files_are_refused_by_line(head, tmp_path, line):
    path = tmp_path / "heads.jsonl"
    keep_heads(path, "run", 1, {"a": head})
    whole = path.read_bytes()
    path.write_bytes(whole + json.dumps(GOOD).encode() + b"\n")
    assert read_heads(path) == {"a": [head, Head(1, "ab" * 32, "cd" * 64)]}
    path.write_bytes(whole)
    with path.open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(ConfigError, match="line 2"):
        read_heads(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_heads(tmp_path / "nothing")


def test_a_ledger_that_went_back_is_told():
    before = {name: Head(9, "a" * 64) for name in ("same", "longer", "shorter", "other")}
    now = {
        "same": Head(9, "a" * 64),
        "longer": Head(11, "b" * 64),
        "shorter": Head(8, "c" * 64),
        "other": Head(9, "d" * 64),
        "new": Head(1, "e" * 64),
    }
    assert went_back(before, now) == ["other", "shorter"]
