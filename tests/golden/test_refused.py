"""What lives within a run is refused from an earlier version, in words that say what to do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from golden.kept import COHORT, SURVIVORS, V1, V2, identity, read, read_lines
from golden.kept_rounds import (
    EARLIER,
    EARLIER_CLEAR,
    LEDGERS,
    PLAN,
    ROSTER,
    SECOND,
    SECOND_CLEAR,
    STATEMENT,
    THIRD,
    THIRD_CLEAR,
    TRAIN,
    message,
    sealing_key,
)
from golden.test_rounds import site

from fedllm.canonical import canonical_json, read_object, sha256_hex, signing_bytes
from fedllm.config import AllowSection
from fedllm.errors import PeerError, RefusedError
from fedllm.federation.authority.authority import Authority
from fedllm.federation.protocol.envelopes import verified_update
from fedllm.federation.protocol.masks import check_settled, mask_scope, reveal_purpose
from fedllm.federation.protocol.messages import (
    OpenRoundHeader,
    OrderDigests,
    RoundStatement,
    Train,
    round_statement,
)
from fedllm.federation.protocol.refusals import Refusal
from fedllm.federation.protocol.statements import check_member, parse_statement, read_statement
from fedllm.federation.protocol.wire import parse_header
from fedllm.federation.site.orders import OrderReader
from fedllm.tasks.cache import ModelCache

UPDATE = "-> update fedllm"
SIGNED = ("Train", "Settle", "Unmask", "RoundOpened", "OpenSum")
STATEMENT_BEFORE = message("Train", EARLIER).header.statement
BEFORE = [EARLIER, EARLIER_CLEAR, SECOND, SECOND_CLEAR, THIRD, THIRD_CLEAR]


def _id(folder: Path) -> str:
    return f"{folder.parent.name}-{folder.name}"


FOLDERS = pytest.mark.parametrize("folder", BEFORE, ids=_id)

FIRST = pytest.mark.parametrize("folder", BEFORE[:2], ids=lambda folder: folder.name)


@FOLDERS
@pytest.mark.parametrize("name", [*SIGNED, "OpenRound"])
def test_a_statement_in_any_message(folder, name):
    if not (folder / "messages" / f"{name}.json").exists():
        assert folder in (EARLIER_CLEAR, SECOND_CLEAR, THIRD_CLEAR), "without masks nobody settles"
        return
    header = message(name, folder).header
    if not isinstance(header, OpenRoundHeader):
        with pytest.raises(PeerError, match=UPDATE):
            read_statement(header.statement, header.signature, ROSTER)
    with pytest.raises(
        PeerError, match=f"as 'fedllm.round.{folder.parent.name}', and .*\n.*{UPDATE}"
    ):
        parse_statement(header.statement)


def under_the_new_name(folder) -> str:
    """Return a statement of before with all that today's says, and its name."""
    said = json.loads(message("Train", folder).header.statement)
    digests = {name: getattr(STATEMENT, name) for name in OrderDigests.model_fields}
    return json.dumps({**said, **digests, "kind": STATEMENT.kind})


@FOLDERS
def test_a_statement_under_the_new_name_is_still_not_signed(folder):
    header = message("Train", folder).header
    renamed = header.statement.replace(f"fedllm.round.{folder.parent.name}", STATEMENT.kind)
    with pytest.raises(PeerError, match="labels"):
        parse_header(RoundStatement, renamed)
    text = under_the_new_name(folder)
    assert parse_header(RoundStatement, text).kind == "fedllm.round.v4"
    for signature in (header.signature, identity("authority").sign(text.encode()).hex()):
        with pytest.raises(PeerError, match="signature"):
            read_statement(text, signature, ROSTER)


@pytest.mark.parametrize("name", ["Train", "Settle", "Unmask"])
def test_a_site_says_so_in_its_log(tmp_path, name):
    # What travels of an error that is not the policy's is its kind alone.
    anne = site(tmp_path, EARLIER)
    assert getattr(anne, name.lower())(message(name, EARLIER)).header.refusal.kind == "PeerError"
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
    refusal = getattr(authority, ask)(message(name, folder)).header.refusal
    assert isinstance(refusal, Refusal)
    assert (refusal.kind, "update fedllm" in refusal.remedy) == ("PeerError", True)


@pytest.mark.parametrize("folder", BEFORE[:4], ids=_id)
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


@pytest.mark.parametrize("folder", [SECOND, THIRD], ids=_id)
@pytest.mark.parametrize("name", SURVIVORS)
def test_an_update_for_a_statement_of_before(folder, name):
    with pytest.raises(PeerError, match="not for this round, key and plan"):
        verified_update(message(f"Trained-{name}", folder).update, STATEMENT, PLAN, name, ROSTER)


def test_signatures_of_survivors():
    scope = mask_scope(STATEMENT, PLAN)
    signatures = [message(f"Settled-{name}").header.signature for name in SURVIVORS]
    assert check_settled(scope, SURVIVORS, signatures, ROSTER)
    for folder in (EARLIER, SECOND, THIRD):
        older = [message(f"Settled-{name}", folder).header.signature for name in SURVIVORS]
        with pytest.raises(PeerError, match="signature of 'anne'"):
            check_settled(scope, SURVIVORS, older, ROSTER)


@pytest.mark.parametrize("folder", [EARLIER, THIRD], ids=_id)
@pytest.mark.parametrize("name", SURVIVORS)
def test_a_reveal(folder, name):
    older = bytes.fromhex(message(f"Unmasked-{name}", folder).header.reveal)
    said = canonical_json(json.loads(message("Train", folder).header.statement))
    first = json.dumps(["fedllm.reveal.v1", sha256_hex(said), name]).encode()
    about = first if folder == EARLIER else signing_bytes("fedllm.reveal.v2", said, name)
    assert read_object(sealing_key(folder).open(older, about))["site"] == name
    statement = parse_header(RoundStatement, under_the_new_name(folder))
    with pytest.raises(PeerError, match="does not open"):
        sealing_key(folder).open(older, reveal_purpose(statement, name))


def test_mask_keys_are_others_than_before():
    before = {m["name"]: m["mask_key"] for m in json.loads(STATEMENT_BEFORE)["cohort"]}
    now = {member.name: member.mask_key for member in STATEMENT.cohort}
    assert set(before) == set(now) == set(COHORT)
    assert not set(before.values()) & set(now.values())
    # The same secret: the label makes the difference, and since version 5 the ledger.
    key = identity("anne").mask_key("run-1", LEDGERS["anne"]).public_key()
    assert key.public_bytes_raw().hex() == now["anne"]


def test_an_order_whose_bounds_leave_no_room_for_a_share_of_the_noise(tmp_path):
    # Those of version 2: noise was cut off where records agreed.
    narrow = message("Train", SECOND).header.bounds
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
