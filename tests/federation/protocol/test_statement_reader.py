"""Signatures of a statement are checked once, and only of the very same one not again."""

from __future__ import annotations

import pytest
from support.federation import build, small_config

from fedllm.errors import PeerError
from fedllm.federation.protocol import statements
from fedllm.federation.protocol.cohorts import cohort_digest
from fedllm.federation.protocol.neighbours import NeighbourhoodReader
from fedllm.federation.protocol.statements import StatementReader


@pytest.fixture
def round_(tiny_checkpoint, tmp_path):
    """A federation, and every message of one whole round to a site of it."""
    federation = build(tmp_path, small_config(tiny_checkpoint("bert")))
    messages = []

    def keep(kind, name, message):
        if name == "site-0" and kind.endswith(" request") and kind != "join request":
            messages.append((kind, message))
        return message

    federation.tamper = keep
    federation.round()
    return federation, messages


def counted(monkeypatch):
    checked = []
    verify = statements.verify_signature
    monkeypatch.setattr(
        statements, "verify_signature", lambda *about: checked.append(about[-1]) or verify(*about)
    )
    return checked


def test_a_site_checks_a_statement_once_an_attempt(round_, monkeypatch):
    federation, messages = round_
    assert [kind for kind, _ in messages] == [
        "train request",
        "ready request",
        "settle request",
        "unmask request",
    ]
    checked = counted(monkeypatch)
    site = federation.sites["site-0"]
    identity = federation.identities["site-0"]
    readers = {
        "statements": StatementReader(federation.roster),
        "neighbourhoods": NeighbourhoodReader(identity, federation.roster),
    }
    for name, reader in readers.items():
        object.__setattr__(site._orders, name, reader)
    for kind, message in messages:
        getattr(site, kind.split()[0])(message)
    assert sorted(checked) == sorted(["the key authority", *federation.sites])


def test_another_text_or_signature_is_checked_for_itself(round_):
    federation, messages = round_
    header = messages[0][1].header
    text, signature = header.statement, header.signature
    reader = StatementReader(federation.roster)
    right = reader.read(text, signature)
    other = f"{'0' if signature[0] != '0' else '1'}{signature[1:]}"
    for forged in (
        (text.replace('"min_sites":2', '"min_sites":1'), signature),
        (text + " ", signature),
        (text, other),
        (text, signature.upper() + "00"),
        (text, ""),
    ):
        assert forged != (text, signature)
        for _ in range(2):
            with pytest.raises(PeerError):
                reader.read(*forged)
        assert reader.read(text, signature) is right


def test_another_neighbourhood_or_ledger_is_checked_for_itself(round_):
    federation, messages = round_
    header = messages[0][1].header
    statement = federation.sites["site-0"]._orders.statements.read(
        header.statement, header.signature
    )
    reader = NeighbourhoodReader(federation.identities["site-0"], federation.roster)
    right = reader.read(header.around, statement, "ledger")
    near = header.around.near
    forged = near[1].model_copy(
        update={"member": near[1].member.model_copy(update={"signature": near[2].member.signature})}
    )
    others = (near[0], forged, near[2])
    # An authority that signs anew, over entries that their sites did not sign.
    second = statement.model_copy(update={"members": cohort_digest([one.member for one in others])})
    for _ in range(2):
        for found, said in (
            (header.around.model_copy(update={"near": others}), statement),
            (header.around.model_copy(update={"near": others}), second),
            (header.around.model_copy(update={"place": 1}), statement),
            (header.around, second),
        ):
            with pytest.raises(PeerError):
                reader.read(found, said, "ledger")
        assert reader.read(header.around, statement, "ledger") is right
    assert reader.read(header.around, statement, "another") is not right


def test_nothing_is_known_of_one_that_was_refused(round_, monkeypatch):
    federation, messages = round_
    header = messages[0][1].header
    reader = StatementReader(federation.roster)
    checked = counted(monkeypatch)
    for _ in range(2):
        with pytest.raises(PeerError):
            reader.read(header.statement, "00" * 64)
    assert checked == ["the key authority"] * 2


def test_another_roster_has_a_reader_of_its_own(round_):
    """Whoever was taken off the roster is in no cohort any more, however often it was read."""
    from dataclasses import replace

    federation, messages = round_
    header = messages[0][1].header
    orders = federation.sites["site-0"]._orders
    orders.statements.read(header.statement, header.signature)
    fewer = {n: key for n, key in federation.roster.sites.items() if n != "site-2"}
    later = replace(orders, roster=replace(federation.roster, sites=fewer))
    with pytest.raises(PeerError, match="not in the roster"):
        later.statements.read(header.statement, header.signature)
