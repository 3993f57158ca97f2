"""The kept rounds as their receivers read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from golden.kept import MANY, V1, V2, V3, V4, V5, V6, identity, read

from fedllm.canonical import canonical_json, sha256_hex, signing_bytes
from fedllm.encryption.plan import EncryptionPlan, make_plan
from fedllm.federation.protocol import messages
from fedllm.federation.protocol.messages import Wire
from fedllm.federation.protocol.neighbours import Around, Neighbourhoods, read_neighbourhood
from fedllm.federation.protocol.statements import read_statement
from fedllm.identity.roster import Roster
from fedllm.identity.sealing import SealingKey

# Messages live as long as a run: version 6 is read, and earlier ones are refused.
ROUND, CLEAR, DRAW = V6 / "round", V6 / "round-in-clear", V6 / "draw"
FIFTH = V5 / "round"
FOURTH, FOURTH_CLEAR = V4 / "round", V4 / "round-in-clear"
THIRD, THIRD_CLEAR = V3 / "round", V3 / "round-in-clear"
SECOND, SECOND_CLEAR = V2 / "round", V2 / "round-in-clear"
EARLIER, EARLIER_CLEAR = V1 / "round", V1 / "round-in-clear"
# Keys, and so the roster, are the same.
ROSTER = Roster.from_json((EARLIER / "roster.json").read_text())
MANY_ROSTER = Roster(ROSTER.authority, {name: identity(name).public_bytes() for name in MANY})
MANY_PLAN = make_plan("bfv", 16, len(MANY), 31, True)


def said(name: str, folder: Path) -> Any:
    """Return a kept header's JSON, of whichever version."""
    return read(folder / "messages" / f"{name}.json")


def digest_of_before(statement: str) -> str:
    """Return the digest of a statement that no version of today reads."""
    text = canonical_json(json.loads(statement))
    return sha256_hex(signing_bytes("fedllm.round-digest.v1", text))


def message(name: str, folder: Path = ROUND) -> Wire:
    """Return a kept message as its receiver reads it."""
    kind = getattr(messages, name.partition("-")[0])
    parts = read(folder / "messages" / "index.json")[name]
    blobs = {part: (folder / "messages" / path).read_bytes() for part, path in parts.items()}
    return kind.from_wire((folder / "messages" / f"{name}.json").read_text(), blobs)


TRAIN, IN_CLEAR = message("Train"), message("Train", CLEAR)
STATEMENT = read_statement(TRAIN.header.statement, TRAIN.header.signature, ROSTER)
MEMBERS = message("OpenRound").header.members
LEDGERS = read(ROUND / "ledgers.json")
PLAN = EncryptionPlan.from_bytes(TRAIN.plan)


def around(name: str) -> Around:
    """Return what a site of the encrypted round was told of its cohort."""
    found = Neighbourhoods(STATEMENT, MEMBERS, {}).of(name)
    return read_neighbourhood(found, STATEMENT, identity(name), LEDGERS[name], ROSTER)


def sealing_key(folder: Path = ROUND) -> SealingKey:
    """Return the kept key for which the survivors of the encrypted round sealed."""
    key = SealingKey()
    key._key = X25519PrivateKey.from_private_bytes((folder / "sealing_key.bin").read_bytes())
    return key
