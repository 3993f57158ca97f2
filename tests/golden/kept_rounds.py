"""The kept rounds as their receivers read them."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from golden.kept import V1, V2, V3, V4, V5, read

from fedllm.encryption.plan import EncryptionPlan
from fedllm.federation.protocol import messages
from fedllm.federation.protocol.messages import Wire
from fedllm.federation.protocol.statements import read_statement
from fedllm.identity.roster import Roster
from fedllm.identity.sealing import SealingKey

# Messages live as long as a run: version 4 is read, and earlier ones are refused. In version 5
# only what is never sent is other than before.
ROUND, CLEAR = V5 / "round", V4 / "round-in-clear"
FOURTH = V4 / "round"
THIRD, THIRD_CLEAR = V3 / "round", V3 / "round-in-clear"
SECOND, SECOND_CLEAR = V2 / "round", V2 / "round-in-clear"
EARLIER, EARLIER_CLEAR = V1 / "round", V1 / "round-in-clear"
# Keys, and so the roster, are the same.
ROSTER = Roster.from_json((EARLIER / "roster.json").read_text())


def message(name: str, folder: Path = ROUND) -> Wire:
    """Return a kept message as its receiver reads it."""
    kind = getattr(messages, name.partition("-")[0])
    parts = read(folder / "messages" / "index.json")[name]
    blobs = {part: (folder / "messages" / path).read_bytes() for part, path in parts.items()}
    return kind.from_wire((folder / "messages" / f"{name}.json").read_text(), blobs)


TRAIN, IN_CLEAR = message("Train"), message("Train", CLEAR)
STATEMENT = read_statement(TRAIN.header.statement, TRAIN.header.signature, ROSTER)
LEDGERS = read(ROUND / "ledgers.json")
PLAN = EncryptionPlan.from_bytes(TRAIN.plan)


def sealing_key(folder: Path = ROUND) -> SealingKey:
    """Return the kept key for which the survivors of the encrypted round sealed."""
    key = SealingKey()
    key._key = X25519PrivateKey.from_private_bytes((folder / "sealing_key.bin").read_bytes())
    return key
