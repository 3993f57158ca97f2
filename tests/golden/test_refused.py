"""What lives within a run is refused from an earlier version, in words that say what to do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from golden.kept import COHORT, SURVIVORS, V1, V2, identity, read, read_lines
from golden.kept_rounds import (
    DRAW,
    EARLIER,
    EARLIER_CLEAR,
    FIFTH,
    FOURTH,
    FOURTH_CLEAR,
    LEDGERS,
    MEMBERS,
    PLAN,
    ROSTER,
    ROUND,
    SECOND,
    SECOND_CLEAR,
    STATEMENT,
    THIRD,
    THIRD_CLEAR,
    TRAIN,
    digest_of_before,
    message,
    said,
    sealing_key,
)
from golden.test_rounds import site

from fedllm.canonical import canonical_json, read_object, sha256_hex, signing_bytes
from fedllm.config import AllowSection
from fedllm.errors import PeerError, RefusedError
from fedllm.federation.authority.authority import Authority
from fedllm.federation.protocol.envelopes import verified_update
from fedllm.federation.protocol.masks import check_settled, mask_scope, reveal_purpose
from fedllm.federation.protocol.messages import OrderDigests, Train
from fedllm.federation.protocol.refusals import Refusal
from fedllm.federation.protocol.round_statement import RoundStatement, round_statement
from fedllm.federation.protocol.statements import check_member, parse_statement, read_statement
from fedllm.federation.protocol.wire import parse_header
from fedllm.federation.site.orders import OrderReader
from fedllm.tasks.cache import ModelCache

UPDATE = "-> update fedllm"
SIGNED = ("Train", "Settle", "Unmask", "RoundOpened", "OpenSum", "OpenRound")
IN_CLEAR = (EARLIER_CLEAR, SECOND_CLEAR, THIRD_CLEAR, FOURTH_CLEAR)
MASKED = (EARLIER, SECOND, THIRD, FOURTH, FIFTH)
FIRST_TWO = [EARLIER, EARLIER_CLEAR, SECOND, SECOND_CLEAR]
BEFORE = [*FIRST_TWO, THIRD, THIRD_CLEAR, FOURTH, FOURTH_CLEAR, FIFTH]


def _id(folder: Path) -> str:
    return f"{folder.parent.name}-{folder.name}"


FOLDERS = pytest.mark.parametrize("folder", BEFORE, ids=_id)

FIRST = pytest.mark.parametrize("folder", BEFORE[:2], ids=lambda folder: folder.name)


def statement_of(folder: Path) -> str:
    """Return the text of a statement of before."""
    return said("Train", folder)["statement"]


def signed_before(folder: Path) -> dict[str, str]:
    """Return a statement of before with the key authority's signature."""
    return {name: said("Train", folder)[name] for name in ("statement", "signature")}


@FOLDERS
@pytest.mark.parametrize("name", SIGNED)
def test_a_statement_in_any_message(folder, name):
    if not (folder / "messages" / f"{name}.json").exists():
        assert folder in IN_CLEAR, "without masks nobody settles"
        return
    header = said(name, folder)
    kind = json.loads(header["statement"])["kind"]
    # What version 5 of the kept files changed is never sent.
    assert kind == f"fedllm.round.{'v4' if folder == FIFTH else folder.parent.name}"
    if name != "OpenRound":
        with pytest.raises(PeerError, match=UPDATE):
            read_statement(header["statement"], header["signature"], ROSTER)
    with pytest.raises(PeerError, match=f"as '{kind}', and this is .*v5'\n.*{UPDATE}"):
        parse_statement(header["statement"])


@FOLDERS
@pytest.mark.parametrize(
    ("name", "part"),
    [("Train", "around"), ("Settle", "around"), ("Unmask", "around"), ("OpenRound", "members")],
)
def test_a_message_that_lacks_what_it_says_today(folder, name, part):
    if folder in IN_CLEAR and name in ("Settle", "Unmask"):
        return
    with pytest.raises(PeerError, match=f"malformed at .*{part}.*\n.*-> install the same version"):
        message(name, folder)


def under_the_new_name(folder) -> str:
    """Return a statement of before with all that today's says, and its name."""
    before = json.loads(statement_of(folder))
    digests = {name: getattr(STATEMENT, name) for name in OrderDigests.model_fields}
    cohort = {"cohort": COHORT, "members": STATEMENT.members}
    return json.dumps({**before, **digests, **cohort, "kind": STATEMENT.kind})


@FOLDERS
def test_a_statement_under_the_new_name_is_still_not_signed(folder):
    text, signed = statement_of(folder), signed_before(folder)["signature"]
    renamed = text.replace(json.loads(text)["kind"], STATEMENT.kind)
    assert renamed != text
    with pytest.raises(PeerError, match=r"malformed at .*cohort\.0"):
        parse_header(RoundStatement, renamed)
    text = under_the_new_name(folder)
    assert parse_header(RoundStatement, text).kind == "fedllm.round.v5"
    for signature in (signed, identity("authority").sign(text.encode()).hex()):
        with pytest.raises(PeerError, match="signature"):
            read_statement(text, signature, ROSTER)


@pytest.mark.parametrize("folder", [EARLIER, FIFTH], ids=_id)
@pytest.mark.parametrize("name", ["Draw", "Train", "Settle", "Unmask"])
def test_a_site_says_so_in_its_log(tmp_path, name, folder):
    # What travels of an error that is not the policy's is its kind alone.
    anne, order = site(tmp_path, folder), message(name, DRAW if name == "Draw" else ROUND)
    before = replace(order, header=order.header.model_copy(update=signed_before(folder)))
    assert getattr(anne, name.lower())(before).header.refusal.kind == "PeerError"
    line = read_lines(tmp_path / "anne.log")[-1]
    assert (line["error"], "update fedllm" in line["text"]) == ("PeerError", True)


@FIRST
def test_an_older_coordinator_that_asks_a_site_to_join(tmp_path, folder):
    # It names the base model by the fingerprint of its time. The reason is the site's own.
    assert site(tmp_path, EARLIER).join(message("Join", folder)).header.refusal.kind == (
        "RefusedError"
    )
    assert "update fedllm" in read_lines(tmp_path / "anne.log")[-1]["text"]


def test_a_policy_that_names_a_base_model_by_its_earlier_fingerprint():
    known = (read(folder / "adapter" / "known.json")["fingerprint"] for folder in (V1, V2))
    before, now = known
    order = message("Join").header
    assert order.model == now
    for fingerprint, accepted in ((now, True), (before, False)):
        allow = AllowSection(encryption="optional", non_private=True, models=(fingerprint,))
        reader = OrderReader(identity("anne"), ROSTER, allow, ModelCache(), str(V1 / "model"))
        if accepted:
            assert reader.configuration(order.config, order.model).name == "kept"
            continue
        with pytest.raises(RefusedError, match=r"allow\.models\n.*fedllm client check"):
            reader.configuration(order.config, order.model)


@FOLDERS
@pytest.mark.parametrize(("ask", "name"), [("open_round", "OpenRound"), ("open_sum", "OpenSum")])
def test_the_key_authority_says_so(folder, ask, name):
    authority = Authority(identity("authority"), ROSTER, 2, full_errors=True)
    request = message(name)
    told = {k: v for k, v in said(name, folder).items() if k in ("statement", "signature")}
    before = replace(request, header=request.header.model_copy(update=told))
    refusal = getattr(authority, ask)(before).header.refusal
    assert isinstance(refusal, Refusal)
    assert (refusal.kind, "update fedllm" in refusal.remedy) == ("PeerError", True)


@pytest.mark.parametrize("folder", FIRST_TWO, ids=_id)
@pytest.mark.parametrize("name", COHORT)
def test_a_member(folder, name):
    member = message(f"Joined-{name}", folder).header.member
    assert member is not None
    with pytest.raises(PeerError, match="update fedllm"):
        check_member(member, "run-1", ROSTER)


@FIRST
@pytest.mark.parametrize("name", SURVIVORS)
def test_an_update(folder, name):
    with pytest.raises(PeerError, match=f"version 1; this is version 2\n.*{UPDATE}"):
        verified_update(message(f"Trained-{name}", folder).update, STATEMENT, PLAN, name, ROSTER)


@pytest.mark.parametrize("folder", MASKED[1:], ids=_id)
@pytest.mark.parametrize("name", SURVIVORS)
def test_an_update_for_a_statement_of_before(folder, name):
    with pytest.raises(PeerError, match="not for this round, key and plan"):
        verified_update(message(f"Trained-{name}", folder).update, STATEMENT, PLAN, name, ROSTER)


def test_signatures_of_survivors():
    scope = mask_scope(STATEMENT, PLAN)

    def signatures(folder: Path) -> dict[str, str]:
        return {name: said(f"Settled-{name}", folder)["signature"] for name in SURVIVORS}

    assert check_settled(scope, SURVIVORS, signatures(ROUND), ROSTER)
    for folder in MASKED:
        with pytest.raises(PeerError, match="signature of 'anne'"):
            check_settled(scope, SURVIVORS, signatures(folder), ROSTER)


def sealed_about(folder: Path, name: str) -> bytes:
    """Return what a reveal of before was bound to."""
    text = statement_of(folder)
    whole = canonical_json(json.loads(text))
    if folder == EARLIER:
        return json.dumps(["fedllm.reveal.v1", sha256_hex(whole), name]).encode()
    if folder == THIRD:
        return signing_bytes("fedllm.reveal.v2", whole, name)
    return signing_bytes("fedllm.reveal.v3", digest_of_before(text), name)


@pytest.mark.parametrize("folder", [EARLIER, THIRD, FIFTH], ids=_id)
@pytest.mark.parametrize("name", SURVIVORS)
def test_a_reveal(folder, name):
    older = bytes.fromhex(message(f"Unmasked-{name}", folder).header.reveal)
    about = sealed_about(folder, name)
    assert read_object(sealing_key(folder).open(older, about))["site"] == name
    statement = parse_header(RoundStatement, under_the_new_name(folder))
    with pytest.raises(PeerError, match="does not open"):
        sealing_key(folder).open(older, reveal_purpose(statement, name))


def test_mask_keys_are_others_than_before():
    before = {m["name"]: m["mask_key"] for m in json.loads(statement_of(EARLIER))["cohort"]}
    now = {member.name: member.mask_key for member in MEMBERS}
    assert set(before) == set(now) == set(COHORT)
    assert not set(before.values()) & set(now.values())
    # The same secret: the label makes the difference, and since version 5 the ledger.
    key = identity("anne").mask_key("run-1", LEDGERS["anne"]).public_key()
    assert key.public_bytes_raw().hex() == now["anne"]


def test_an_order_whose_bounds_leave_no_room_for_a_share_of_the_noise(tmp_path):
    # Those of version 2: noise was cut off where records agreed.
    narrow = tuple(map(tuple, said("Train", SECOND)["bounds"]))
    header = TRAIN.header.model_copy(update={"bounds": narrow})
    order = Train(header, TRAIN.plan, TRAIN.public_key, TRAIN.adapter)
    # An authority signs what its coordinator proposes; the site asks for its own bounds.
    text = STATEMENT.model_copy(update={"bounds": order.digests().bounds}).model_dump_json()
    signature = identity("authority").sign(round_statement(text)).hex()
    signed = replace(
        order, header=header.model_copy(update={"statement": text, "signature": signature})
    )
    for asked, reason in (
        (order, "not what was signed for this round: the order's bounds"),
        (signed, "the bounds are not those that follow"),
    ):
        assert site(tmp_path).train(asked).header.refusal.kind == "PeerError"
        text = read_lines(tmp_path / "anne.log")[-1]["text"]
        assert reason in text
    assert "run the same version" in text
