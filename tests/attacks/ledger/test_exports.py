"""The exported ledger that an auditor is given."""

from __future__ import annotations

import json

import pytest
from support.ledger import SIGNER

from fedllm.canonical import canonical_json
from fedllm.privacy.ledger.audit import export_ledger, verify_ledger
from fedllm.privacy.ledger.entries import TamperedError


def exported(path, tmp_path):
    out = tmp_path / "audit.jsonl"
    export_ledger(path, out)
    return out, out.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize(
    "change", ["edit", "remove", "swap", "spell", "tags", "cut line", "repeat", "extra"]
)
def test_changed_export(path, ledger, tmp_path, change):
    out, lines = exported(path, tmp_path)
    if change == "edit":
        lines[3] = lines[3].replace(b'"noise_multiplier":10.0', b'"noise_multiplier":99.0')
    elif change == "remove":
        del lines[3]
    elif change == "swap":
        lines[3], lines[5] = lines[5], lines[3]
    elif change == "spell":
        lines[3] = lines[3].replace(b'"noise_multiplier":10.0', b'"noise_multiplier":10.00')
    elif change == "tags":
        line = json.loads(lines[1])
        del line["tags"]
        lines[1] = canonical_json(line) + b"\n"
    elif change == "cut line":
        lines[-1] = lines[-1][:-20]
    elif change == "repeat":
        lines.append(lines[-1])
    elif change == "extra":
        lines[3] = canonical_json({**json.loads(lines[3]), "note": 1}) + b"\n"
    out.write_bytes(b"".join(lines))
    with pytest.raises(TamperedError):
        verify_ledger(out, SIGNER.public_bytes())


def test_truncated_export_is_found_with_an_anchor(path, ledger, tmp_path):
    out, lines = exported(path, tmp_path)
    out.write_bytes(b"".join(lines[:-2]))
    verify_ledger(out, SIGNER.public_bytes())
    with pytest.raises(TamperedError, match="cut off"):
        verify_ledger(out, SIGNER.public_bytes(), [ledger.head()])
