"""The kept rounds as their receivers read them."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from golden.kept import V1, V2, V3, read

from fedllm.encryption.plan import EncryptionPlan
from fedllm.federation.protocol import messages
from fedllm.federation.protocol.messages import Train, Wire
from fedllm.federation.protocol.statements import read_statement
from fedllm.identity.roster import Roster
from fedllm.identity.sealing import SealingKey

# Messages live as long as a run: version 2 is read, and version 1 is refused.
ROUND, CLEAR = V2 / "round", V2 / "round-in-clear"
EARLIER, EARLIER_CLEAR = V1 / "round", V1 / "round-in-clear"
# Keys, and so the roster, are the same.
ROSTER = Roster.from_json((EARLIER / "roster.json").read_text())


def message(name: str, folder: Path = ROUND) -> Wire:
    """Return a kept message as its receiver reads it."""
    kind = getattr(messages, name.partition("-")[0])
    parts = read(folder / "messages" / "index.json")[name]
    blobs = {part: (folder / "messages" / path).read_bytes() for part, path in parts.items()}
    return kind.from_wire((folder / "messages" / f"{name}.json").read_text(), blobs)


def _order() -> Train:
    """Return the order of the kept round with the bounds of version 3; no more changed."""
    text = (V3 / "round" / "messages" / "Train.json").read_text()
    return Train.from_wire(text, message("Train").to_wire()[1])


TRAIN, IN_CLEAR = _order(), message("Train", CLEAR)
STATEMENT = read_statement(TRAIN.header.statement, TRAIN.header.signature, ROSTER)
PLAN = EncryptionPlan.from_bytes(TRAIN.plan)


def sealing_key(folder: Path = ROUND) -> SealingKey:
    """Return the kept key for which the survivors of the encrypted round sealed."""
    key = SealingKey()
    key._key = X25519PrivateKey.from_private_bytes((folder / "sealing_key.bin").read_bytes())
    return key
