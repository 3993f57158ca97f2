"""Make the kept federation: the operator's folder with kits, requests, answers, a revocation."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

from golden.kept import PASSPHRASE
from support.kits import federation_config

from fedllm.files import write_bytes
from fedllm.identity.enrolment import accept, enroll, read_answer, read_request
from fedllm.identity.provisioning import provision, renew, revoke, sign

NOW = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
# A century: the kept kits must not expire.
NAMES = {"sites": ["anne"], "titles": {"anne": "Klinik Köln"}}
DAYS = {"validity_days": 36500, "ca_validity_days": 36500}


def make(folder: Path) -> None:
    """Write ``federation`` and, as at a site that has not been answered yet, ``enrolled``."""
    operator, enrolled = folder / "federation", folder / "enrolled"
    provision(federation_config(**NAMES, **DAYS), operator, NOW, PASSPHRASE)
    for name in ("bob", "bob-again"):
        enroll(enrolled / name, "site", "bob")
        request = read_request((enrolled / name / "request.json").read_text())
        _, answer = sign(operator, request, NOW + timedelta(days=1), PASSPHRASE)
        if name == "bob":
            revoke(operator, "bob", NOW + timedelta(days=2), PASSPHRASE)
        else:
            accept(enrolled / name, read_answer(answer.read_text()))
    enroll(enrolled / "coordinator", "coordinator", "coordinator")
    write_bytes(enrolled / "first-roster.json", (operator / "roster.json").read_bytes())
    renew(operator, new_ca=True, now=NOW + timedelta(days=3), passphrase=PASSPHRASE)
    for lock in folder.rglob(".lock"):
        lock.unlink()
    shutil.rmtree(enrolled / "bob")
