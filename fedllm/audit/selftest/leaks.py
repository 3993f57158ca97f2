"""Checks that nothing but the encrypted update says anything of a site's records.

The same site, with the same keys and the same entropy, answers the same orders on other records:
every word that leaves must be the same but for hashes, signatures and what is sealed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from fedllm.audit.selftest.attempts import LOCAL, failing
from fedllm.audit.selftest.building import Setting, build, records_of
from fedllm.audit.selftest.entropy import known_answers, replaced, watched
from fedllm.audit.selftest.federation import Federation
from fedllm.audit.selftest.material import SITES, Material
from fedllm.audit.selftest.seeds import site_config
from fedllm.config import BudgetSection
from fedllm.data.records import Record
from fedllm.errors import DataError, PeerError, TrainingError
from fedllm.federation.protocol.messages import Wire
from fedllm.federation.protocol.statements import make_member
from fedllm.identity.keys import Identity
from fedllm.privacy.ledger.audit import read_state
from fedllm.privacy.ledger.heads import signed_head
from fedllm.training import local

_NAME = SITES[0]
_PRIVATE = "zyxwvut98765"
# What each answer says beside its refusal; a value is checked, or of a form that says nothing.
_FIELDS = {
    "join": {"site", "member", "refusal"},
    "draw": {"site", "refusal", "seed"},
    "train": {"site", "refusal", "ledger", "ledger_signature"},
    "ready": {"site", "refusal"},
    "settle": {"site", "refusal", "signature"},
    "unmask": {"site", "refusal", "reveal"},
    "recover": {"site", "refusal", "shares"},
}
_BLOBS: dict[str, set[str]] = {key: set() for key in _FIELDS} | {
    "train": {"update"},
    "settle": {"escrow"},
}
# These differ from record to record, and say nothing without a secret of the site or authority.
_OPAQUE = ("ledger", "ledger_signature", "reveal", "seed", "shares", "signature")


@dataclass
class _Said:
    """What the first site's answers said."""

    answers: list[tuple[str, dict[str, Any], dict[str, bytes]]] = field(default_factory=list)


def words_say_nothing(material: Material, all_cases: bool = True) -> str | None:
    """A whole round and an evaluation on other records give the same words."""
    config = site_config(
        material,
        LOCAL,
        encryption={"masks": True},
        evaluation={"every": 1, "holdout": 0.1},
        training={"learning_rate": 1e-3},
    )
    identities = {name: Identity.generate(name) for name in (*SITES, "authority")}
    said = []
    # Of one announced size, which is public.
    worlds = (("one", 24), ("other", 27), ("third", 25))
    for seed, count in worlds if all_cases else worlds[:2]:
        federation = build(material, config, _world(identities, seed, count))
        with watched(known_answers("leaks")):
            said.append(_listen(federation))
        if problem := _form(said[-1], federation):
            return problem
    for other in said[1:]:
        if problem := _same(said[0], other):
            return problem
    return None


def _world(identities: dict[str, Identity], seed: str, count: int) -> Setting:
    return Setting(
        identities=identities,
        records=lambda name: records_of(f"{seed}/{name}", count=count),
        full_errors=False,
    )


def _listen(federation: Federation) -> _Said:
    said = _Said()

    def heard(kind: str, name: str, answer: Wire) -> None:
        if name == _NAME:
            header, blobs = answer.to_wire()
            said.answers.append((kind, json.loads(header), blobs))

    federation.heard = heard
    federation.silent = ("unmask", SITES[1])
    federation.round(1)
    federation.round(1, "evaluation")
    return said


def _form(said: _Said, federation: Federation) -> str | None:
    member = make_member(
        federation.identities[_NAME],
        federation.ledger(_NAME).id,
        federation.terms.run,
        federation.sizes[_NAME],
    ).model_dump()
    heads = []
    for kind, header, blobs in said.answers:
        if set(header) != _FIELDS[kind] or set(blobs) != _BLOBS[kind]:
            extra = (set(header) ^ _FIELDS[kind]) | (set(blobs) ^ _BLOBS[kind])
            return f"the answer to '{kind}' has other parts than it must: {sorted(extra)}"
        if header["refusal"] is not None:
            return f"a site refused: {header['refusal']}"
        if header["site"] != _NAME or header.get("member", member) != member:
            return f"the answer to '{kind}' does not name the site and its key as it must"
        if kind == "train":
            heads.append((header["ledger"], header["ledger_signature"]))
    # In a cohort so small nobody draws neighbours.
    if not heads or {kind for kind, *_ in said.answers} != set(_FIELDS) - {"draw"}:
        return "a round did not ask for everything that it must"
    if not _of_the_ledger(heads, federation):
        return "an answer holds something else than the head of the ledger"
    return None


def _of_the_ledger(sent: list[tuple[str, str]], federation: Federation) -> bool:
    # An update leaves with the entry that says so; on which sum a site settles is written later.
    key = federation.identities[_NAME].public_bytes()
    try:
        heads = [signed_head(*one, key, _NAME) for one in sent]
        state = read_state(federation.ledger_file(_NAME), key, heads)
    except PeerError:
        return False
    return [head.sequence for head in heads] == list(state.committed.values())


def _same(one: _Said, other: _Said) -> str | None:
    if len(one.answers) != len(other.answers):
        return "the number of answers depends on records"
    for (kind, mine, blobs), (_, theirs, others) in zip(one.answers, other.answers, strict=True):
        for name in mine:
            if name in _OPAQUE:
                if len(str(mine[name])) != len(str(theirs[name])):
                    return f"the length of '{name}' in the answer to '{kind}' depends on records"
            elif mine[name] != theirs[name]:
                return f"'{name}' in the answer to '{kind}' depends on records"
        for name in blobs:
            if len(blobs[name]) != len(others[name]):
                return f"the length of the {name} depends on records"
            if kind == "train" and _readable(blobs[name]) != _readable(others[name]):
                return f"the words around the {name} depend on records"
    return None


def _readable(envelope: bytes) -> dict[str, Any]:
    """Return the words around an update without the round's key and the digest of its bytes."""
    start = envelope.index(b"{")
    words, _ = json.JSONDecoder().raw_decode(envelope[start : start + 4096].decode("latin-1"))
    return {name: value for name, value in words.items() if name not in ("key", "sha256")}


def refusals_say_nothing(material: Material) -> str | None:
    """A failure that speaks of a record leaves the site as its kind alone."""
    errors: list[Exception] = [
        TrainingError(f"loss of {_PRIVATE}", _PRIVATE),
        DataError(_PRIVATE, _PRIVATE),
        RuntimeError(_PRIVATE),
        ValueError(_PRIVATE),
        KeyError(_PRIVATE),
        OSError(5, _PRIVATE),
    ]
    config = site_config(material, LOCAL, rounds={"count": 1}, evaluation={"every": 1})
    federation = build(material, config, Setting(full_errors=False))
    for attempt, error in enumerate(errors, 1):
        for purpose in ("update", "evaluation") if attempt == 1 else ("update",):
            order, _ = federation.order(1, None, attempt, None, purpose)  # type: ignore[arg-type]
            with failing(error):
                answer = federation.sites[_NAME].train(order)
            header, blobs = answer.to_wire()
            if _PRIVATE in header or _PRIVATE.encode() in b"".join(blobs.values()):
                return f"the words of a {type(error).__name__} leave the site"
            if answer.header.refusal is None:
                return "a site whose work failed did not refuse"
    return _of_records(material)


def _of_records(material: Material) -> str | None:
    """Records that cannot be learned from are left out, and a unit that breaks off adds nothing."""
    config = site_config(material, LOCAL, evaluation={"every": 0})
    broken = records_of(_NAME, count=6)
    broken[2] = Record({"text": "", "label": _PRIVATE}, None, None, f"{_PRIVATE}:3")
    federation = build(material, config, Setting(full_errors=False, records=lambda name: broken))
    order, _ = federation.order(1)
    answer = federation.sites[_NAME].train(order)
    header, _ = answer.to_wire()
    if _PRIVATE in header or not answer.update:
        return "a record that cannot be learned from shows in a site's answer"

    def break_off(*_: object) -> None:
        raise RuntimeError(_PRIVATE)

    # Where training computes of records; that it can work at all is seen on made-up ones.
    with replaced(local, "record_losses", break_off):
        if federation.refused(_NAME, 1, 2):
            return "a site refuses where the model breaks off at its records"
    return _of_budget(material)


def _of_budget(material: Material) -> str | None:
    """A site that cannot pay for a run says neither its ceiling nor what is left."""
    ceiling = 0.1234567
    setting = Setting(full_errors=False, budget=BudgetSection(epsilon=ceiling))
    federation = build(material, site_config(material, LOCAL, evaluation={"every": 0}), setting)
    refusal = federation.joined(_NAME).refusal
    if refusal is None or "0.12" in refusal.model_dump_json():
        return "a refusal says what a site may spend"
    return None
