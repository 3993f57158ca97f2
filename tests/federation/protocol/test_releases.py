"""What a coordinator signs of a released model: read as it was written, or refused."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedllm.canonical import canonical_json, labelled_json
from fedllm.errors import FedllmError, PeerError
from fedllm.federation.protocol.releases import (
    MAX_DOCUMENT_BYTES,
    MAX_FILES,
    Release,
    ReleasedFile,
    is_file_name,
    piece_request,
    read_piece_request,
    sign_release,
    verify_release,
)
from fedllm.identity.keys import Identity

COORDINATOR = Identity.generate("coordinator")
FILES = (
    ReleasedFile("adapter_model.safetensors", 5_000_000_000, "ab" * 32),
    ReleasedFile("shared_model.json", 300, "cd" * 32),
)
RELEASE = Release(
    federation="north",
    run="0123456789abcdef",
    name="bank",
    config='name = "bank"\n',
    base="ef" * 32,
    summary={"rounds": 3, "metrics": {"loss": 0.25}},
    files=FILES,
    time=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
)


def verified(text: str | bytes) -> Release:
    return verify_release(text, COORDINATOR.public_bytes())


def signed(changes: dict[str, Any]) -> bytes:
    """Sign whatever it is, as a hostile coordinator can."""
    plain = json.loads(sign_release(RELEASE, COORDINATOR))["release"] | changes
    signature = COORDINATOR.sign(labelled_json("fedllm.release.v1", plain)).hex()
    return canonical_json({"format": "fedllm.release.v1", "signature": signature, "release": plain})


def test_what_was_signed_is_read_back():
    text = sign_release(RELEASE, COORDINATOR)
    assert verified(text) == RELEASE
    assert verified(text).digest == RELEASE.digest
    assert RELEASE.size == 5_000_000_300
    # The layout of the file is nothing that was signed.
    assert verified(json.dumps(json.loads(text), indent=2)) == RELEASE


@pytest.mark.parametrize(
    "changes",
    [
        {"run": "fedcba9876543210"},
        {"config": "x"},
        {"base": "00" * 32},
        {"files": FILES[1:]},
        {"time": datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC)},
        {"summary": {}},
        {"federation": "south"},
    ],
)
def test_the_digest_says_all_of_it(changes):
    assert replace(RELEASE, **changes).digest != RELEASE.digest


def test_another_key_is_refused():
    text = sign_release(RELEASE, Identity.generate("coordinator"))
    with pytest.raises(PeerError, match="signature of 'the coordinator'"):
        verified(text)


def test_every_changed_field_breaks_the_signature():
    text = sign_release(RELEASE, COORDINATOR)
    for before, after in (("bank", "bang"), ("5000000000", "5000000001"), ("abab", "abac")):
        with pytest.raises(PeerError):
            verified(text.replace(before, after, 1))


@given(st.data())
def test_no_byte_can_be_changed(data):
    text = bytearray(sign_release(RELEASE, COORDINATOR).encode())
    place = data.draw(st.integers(0, len(text) - 1))
    text[place] ^= data.draw(st.integers(1, 255))
    try:
        found = verified(bytes(text))
    except FedllmError:
        return
    # Capital letters of the signature, which is not what was signed.
    assert found == RELEASE


def named(name: str) -> dict[str, Any]:
    return {"files": [{"name": name, "size": 1, "sha256": "ab" * 32}]}


@pytest.mark.parametrize(
    "name",
    [
        "../../../.ssh/authorized_keys.json",
        "/etc/cron.d/x.json",
        "a/b.json",
        "..json",
        ".hidden.json",
        "a\\b.json",
        "C:x.json",
        "x.json\n",
        "a\x00.json",
        "run.py",
        "pytorch_model.bin",
        "x.pkl",
        "x.json" * 20,
        "",
        "ｘ.json",
        "-rf.json",
    ],
)
def test_a_signed_name_that_no_adapter_has_is_refused(name):
    assert not is_file_name(name)
    with pytest.raises(PeerError, match="which no adapter has"):
        verified(signed(named(name)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"files": []}, "0 files"),
        ({"files": [{"name": f"x{n:02}.json", "size": 1, "sha256": "ab" * 32}
                    for n in range(MAX_FILES + 1)]}, "33 files"),
        ({"files": [{"name": n, "size": 1, "sha256": "ab" * 32} for n in ("A.json", "a.json")]},
         "twice"),
        ({"files": [{"name": n, "size": 1, "sha256": "ab" * 32} for n in ("b.json", "a.json")]},
         "out of order"),
        ({"files": [{"name": "a.json", "size": 1 << 25, "sha256": "ab" * 32}]}, "cannot have"),
        ({"files": [{"name": "a.safetensors", "size": 1 << 40, "sha256": "ab" * 32}]},
         "cannot have"),
        ({"files": [{"name": "a.json", "size": -1, "sha256": "ab" * 32}]}, "cannot have"),
        ({"files": [{"name": "a.json", "size": True, "sha256": "ab" * 32}]}, "damaged"),
        ({"files": [{"name": "a.json", "size": 1.0, "sha256": "ab" * 32}]}, "damaged"),
        ({"files": [{"name": "a.json", "size": 1, "sha256": "ab"}]}, "damaged"),
        ({"files": [{"name": "a.json", "size": 1, "sha256": "ab" * 32, "mode": 4755}]}, "damaged"),
        ({"files": "a.json"}, "damaged"),
        ({"run": "../x"}, "whose name is none"),
        ({"run": 7}, "damaged"),
        ({"name": "a b"}, "whose name is none"),
        ({"base": "none"}, "no base model"),
        ({"time": "2026-01-01T00:00:00"}, "damaged"),
        ({"summary": []}, "damaged"),
        ({"more": 1}, "damaged"),
    ],
)  # fmt: skip
def test_what_is_signed_and_wrong_is_refused(changes, words):
    with pytest.raises(PeerError, match=words):
        verified(signed(changes))


def test_a_document_without_end_is_not_read():
    with pytest.raises(PeerError, match="too large"):
        verified(b" " * (MAX_DOCUMENT_BYTES + 1))
    with pytest.raises(PeerError, match="too large to be signed"):
        sign_release(replace(RELEASE, config="x" * MAX_DOCUMENT_BYTES), COORDINATOR)


def test_another_version_is_refused_in_words():
    text = sign_release(RELEASE, COORDINATOR).replace("release.v1", "release.v9")
    with pytest.raises(PeerError, match="unknown format"):
        verified(text)


def test_a_request_for_a_piece_names_nothing_else():
    assert read_piece_request(piece_request("0123abcd", "a.json", 7)) == ("0123abcd", "a.json", 7)
    for run, file, offset in (
        ("..", "a.json", 0),
        ("0123abcd", "../a.json", 0),
        ("0123abcd", "a.json", -1),
        ("0123abcd", "a.json", 1 << 60),
        ("0123abcd", "a.json", True),
        (None, "a.json", 0),
        ("0123abcd", ["a.json"], 0),
    ):
        with pytest.raises(ValueError, match="not a"):
            read_piece_request(piece_request(run, file, offset))  # type: ignore[arg-type]
    for body in (b"", b"[]", b"{}", b"\xff", b'{"run": "0123abcd"}'):
        with pytest.raises(ValueError, match=r".*"):
            read_piece_request(body)
