"""What the tests of kept files share: where they lie, whose keys made them, how to damage them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedllm.data.records import Record
from fedllm.identity.keys import Identity

HERE = Path(__file__).resolve().parent
V1, V2, V3, V4, V5, V6, V7, V8 = (HERE / f"v{number}" for number in range(1, 9))
PASSPHRASE = b"a passphrase for tests alone"
# Of the kept rounds: carl's update never arrives.
COHORT = ("anne", "bob", "carl")
SURVIVORS = ("anne", "bob")
# Of the kept draw of neighbours, which no cohort as small as this one has in fact.
MANY = (*COHORT, "dora", "emil", "frida", "gus")


def seed(purpose: str) -> bytes:
    """Return 32 bytes that anybody can make: the secrets of test keys."""
    return hashlib.sha256(f"a test key, never to be used: {purpose}".encode()).digest()


def identity(name: str) -> Identity:
    """Return a party's test keys."""
    key = Ed25519PrivateKey.from_private_bytes(seed(f"signing {name}"))
    return Identity(name, key, seed(f"secret {name}"))


def read(path: Path) -> Any:
    """Read a kept JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_lines(path: Path) -> list[Any]:
    """Read a kept file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def records(path: Path, person: str | None = None) -> list[Record]:
    """Read kept records; ``person`` is the field that names whose a record is."""
    found = []
    for number, values in enumerate(read_lines(path), start=1):
        unit = values.pop(person) if person else None
        found.append(Record(values, unit, None, f"{path.name}:{number}"))
    return found


def private_copy(folder: Path, to: Path) -> Path:
    """Copy a kept folder with the modes that git does not keep: for the owner alone."""
    shutil.copytree(folder, to)
    to.chmod(0o700)
    for path in to.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    return to


def damaged(content: bytes, every: int = 1, start: int = 0) -> Iterator[bytes]:
    """Yield copies with one bit of one byte changed, at every so many places."""
    for place in range(start, len(content), every):
        yield content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
