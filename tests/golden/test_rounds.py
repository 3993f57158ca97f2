"""A kept round is read for ever: every message, every signature, and the sum that it opens."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from golden.kept import COHORT, SURVIVORS, V1, V2, V3, damaged, identity, read, read_lines, records
from golden.kept_rounds import (
    CLEAR,
    EARLIER,
    EARLIER_CLEAR,
    IN_CLEAR,
    PLAN,
    ROSTER,
    ROUND,
    SECOND,
    SECOND_CLEAR,
    STATEMENT,
    TRAIN,
    message,
    sealing_key,
)
from support.tasks import encode

from fedllm.canonical import signing_bytes
from fedllm.config import AllowSection, BudgetSection, SitePolicy, parse
from fedllm.config.run import RunConfig
from fedllm.errors import FedllmError, PeerError
from fedllm.federation.authority.round_log import LogEntry, RoundLog, read_log
from fedllm.federation.protocol import messages
from fedllm.federation.protocol.masks import reveal_purpose
from fedllm.federation.protocol.messages import (
    CohortMember,
    RoundStatement,
    Settle,
    Wire,
    member_statement,
    round_statement,
)
from fedllm.federation.protocol.refusals import Refusal
from fedllm.federation.protocol.statements import check_member, make_member, read_statement
from fedllm.federation.protocol.wire import digest
from fedllm.federation.site.charging import SiteAccount
from fedllm.federation.site.data import SiteData
from fedllm.federation.site.files import SiteFiles
from fedllm.federation.site.memory import SiteMemory
from fedllm.federation.site.orders import OrderReader
from fedllm.federation.site.site import Site
from fedllm.federation.transport.flower import from_content, to_content
from fedllm.privacy.ledger.audit import read_state
from fedllm.privacy.ledger.heads import read_heads
from fedllm.tasks.cache import ModelCache

ANSWERS = [
    *(path for path in sorted(V1.glob("refusal/[A-Z]*.json")) if path.stem != "Joined"),
    *V2.glob("refusal/[A-Z]*.json"),
]
# What a site and the key authority keep is read whichever version wrote it.
STORED = pytest.mark.parametrize("stored", [ROUND, SECOND, EARLIER], ids=["v3", "v2", "v1"])
HELD_OUT = [f"anne.jsonl:{n}" for n in (1, 2, 4, 6, 8, 9, 10)]
NAMES = [
    (folder, path.stem)
    for folder in (ROUND, CLEAR, SECOND, SECOND_CLEAR, EARLIER, EARLIER_CLEAR)
    for path in sorted(folder.glob("messages/[A-Z]*.json"))
]


def _id(value: Path | str) -> str:
    return value if isinstance(value, str) else str(value.relative_to(V1.parent))


@pytest.mark.parametrize(("folder", "name"), NAMES, ids=_id)
def test_each_message_is_read_and_written_as_it_was(folder, name):
    found = message(name, folder)
    header, blobs = found.to_wire()
    kept = (folder / "messages" / f"{name}.json").read_text()
    # Before, a site did not say its size with its yes; and first not its name either.
    if name.startswith("Joined") and V3 not in folder.parents:
        header = header.replace('"units":0,', "", 1)
    if name.startswith("Joined") and V1 in folder.parents:
        header = header.replace('"site":"",', "", 1)
    assert header == kept
    content = to_content(header, blobs)
    assert from_content(content) == (header, blobs)


def test_every_kind_of_message_is_kept():
    kinds = {
        name
        for name, kind in vars(messages).items()
        if isinstance(kind, type) and issubclass(kind, Wire) and kind is not Wire
    }
    for folder in (ROUND, SECOND, EARLIER):
        assert {name.partition("-")[0] for kept, name in NAMES if kept == folder} == kinds
    assert {path.stem for path in ANSWERS} < kinds


def test_large_parts_travel_in_arrays_of_this_type():
    content = to_content("{}", {"update": bytes(1 << 19)})
    assert content.array_records["blobs"]["update"].stype == "fedllm.bytes.v1"
    assert to_content("{}", {"plan": b"x"}).config_records["header"]["blob.plan"] == b"x"


@pytest.mark.parametrize("path", ANSWERS, ids=_id)
def test_each_refusal_is_read_and_written_as_it_was(path):
    kind = getattr(messages, path.stem)
    blobs = {"Trained": "update", "RoundOpened": "public_key", "SumOpened": "levels"}
    parts = {blobs[path.stem]: b""} if path.stem in blobs else {}
    found = kind.from_wire(path.read_text(), parts)
    no = Refusal(kind="RefusedError", message="the policy forbids it", remedy="ask the site")
    assert found.header.refusal == no
    assert found.to_wire() == (path.read_text(), parts)
    assert found.header.refusal.to_error("carl").exit_code == 3


def test_refusals_are_told_as_they_were():
    private, spent = (Refusal(**value) for value in read(V1 / "refusal" / "refusals.json"))
    assert private == Refusal(
        kind="DataError", message="DataError", remedy="the site's own log has the details"
    )
    assert (spent.kind, spent.to_error("x").exit_code) == ("BudgetError", 3)
    assert message("Trained-carl").header.refusal.kind == "RefusedError"


def test_the_signed_statement_says_what_it_said():
    assert (STATEMENT.kind, STATEMENT.run, STATEMENT.round) == ("fedllm.round.v3", "run-1", 1)
    assert RoundStatement.model_fields["kind"].default == STATEMENT.kind
    assert (STATEMENT.attempt, STATEMENT.purpose, STATEMENT.rounds) == (1, "update", 2)
    assert (STATEMENT.names, STATEMENT.min_sites, STATEMENT.series) == (COHORT, 2, "run-1")
    evaluation = STATEMENT.model_copy(update={"purpose": "evaluation"})
    assert evaluation.series == "run-1/evaluation", "in logs and memories"
    assert STATEMENT.config == digest(TRAIN.header.config)
    assert STATEMENT.plan == PLAN.fingerprint() == digest(TRAIN.plan)
    assert STATEMENT.key == digest(TRAIN.public_key)
    assert STATEMENT.noise_multiplier is not None
    assert STATEMENT.model_dump_json() == TRAIN.header.statement
    signature = identity("authority").sign(round_statement(TRAIN.header.statement)).hex()
    assert signature == TRAIN.header.signature
    opened = message("RoundOpened")
    assert opened.header.statement == TRAIN.header.statement
    for changed in damaged(TRAIN.header.statement.encode(), every=19):
        with pytest.raises(PeerError):
            read_statement(changed.decode(), signature, ROSTER)


@pytest.mark.parametrize("name", COHORT)
def test_a_member_is_signed_as_it_was(name):
    member = next(m for m in STATEMENT.cohort if m.name == name)
    assert member == message(f"Joined-{name}").header.member
    assert make_member(identity(name), "run-1", 0) == member
    check_member(member, "run-1", ROSTER)
    words = member_statement("run-1", name, member.mask_key, member.units)
    assert words == signing_bytes("fedllm.member.v3", "run-1", name, member.mask_key, "0")
    for changed in damaged(member.mask_key.encode(), every=9):
        with pytest.raises(PeerError):
            check_member(
                CohortMember(**{**dict(member), "mask_key": changed.decode()}), "run-1", ROSTER
            )


def site(folder, stored=ROUND, name="anne") -> Site:
    """Return a site of today with what it kept."""
    for kept in (stored / "sites").iterdir():
        shutil.copy(kept, folder)
    files = SiteFiles(*(folder / f"{name}.{kind}" for kind in ("sqlite", "json", "log")))
    return Site(
        identity=identity(name),
        roster=ROSTER,
        policy=SitePolicy(
            budget=BudgetSection(epsilon=8.0, colluders_epsilon=64.0),
            allow=AllowSection(encryption="optional", non_private=True),
        ),
        files=files,
        model_path=str(V1 / "model"),
        records=lambda task: records(EARLIER / "records" / f"{name}.jsonl"),
        models=ModelCache(),
    )


@pytest.mark.parametrize(("order", "scheme"), [(TRAIN, "bfv"), (IN_CLEAR, "none")])
def test_a_kept_order_is_accepted(order, scheme):
    allow = AllowSection(encryption="optional", non_private=True)
    reader = OrderReader(identity("anne"), ROSTER, allow, ModelCache(), str(V1 / "model"))
    found = reader.order(order)
    assert found.config == parse(RunConfig, found.config.model_dump(mode="json"), "again")
    assert (found.plan.scheme, found.plan.length) == (scheme, 31)
    assert found.model.initial.tobytes() == order.adapter == found.adapter.tobytes()


@STORED
def test_a_site_with_kept_memory_answers_as_it_did(tmp_path, stored):
    anne = site(tmp_path, stored)
    # Its last attempt was an evaluation; the memory knows both apart.
    assert anne.settle(message("Settle")).to_wire() == message("Settled-anne").to_wire()
    again = anne.train(TRAIN).header.refusal
    assert again is not None
    assert again.kind == "RepeatError"
    others = message("Settle")
    header = others.header.model_copy(update={"survivors": COHORT})
    assert anne.settle(Settle(header, others.plan)).header.refusal.kind == "RefusedError"
    sealed = anne.unmask(message("Unmask")).header.reveal
    kept = message("Unmasked-anne").header.reveal
    about = reveal_purpose(STATEMENT, "anne")
    opened = [sealing_key().open(bytes.fromhex(text), about) for text in (sealed, kept)]
    assert opened[0] == opened[1]


@STORED
def test_the_memory_says_what_it_said(tmp_path, stored):
    shutil.copy(stored / "sites" / "anne.json", tmp_path)
    memory = SiteMemory(tmp_path / "anne.json")
    assert memory.settled("run-1", 1) == SURVIVORS
    assert memory.settled("run-1/evaluation", 2) == COHORT
    assert memory.used()
    assert memory.knows("run-1/evaluation")
    assert not memory.knows("run-2")


@STORED
def test_the_ledger_of_a_kept_site_knows_its_rounds(tmp_path, stored):
    shutil.copy(stored / "sites" / "anne.sqlite", tmp_path)
    path = tmp_path / "anne.sqlite"
    account = SiteAccount(path, identity("anne"), SitePolicy())
    assert account.charged(STATEMENT)
    heads = read_heads(stored / "ledger_heads.jsonl")
    assert account.head() == heads["anne"][-1]
    state = read_state(path, ROSTER.sites["anne"], heads["anne"])
    training, evaluation = state.reservations.values()
    assert (training.run, training.purpose, evaluation.purpose) == (
        "run-1",
        "training",
        "evaluation",
    )
    assert {c.name for c in (training, evaluation)} == {"" if stored == EARLIER else "kept"}
    assert training.events[0].noise_multiplier == STATEMENT.noise_multiplier
    assert training.colluder_events != training.events


def test_the_same_records_are_held_out():
    allow = AllowSection(encryption="optional", non_private=True)
    reader = OrderReader(identity("anne"), ROSTER, allow, ModelCache(), str(V1 / "model"))
    order = reader.order(TRAIN)
    rows = records(EARLIER / "records" / "anne.jsonl")
    held = SiteData(lambda task: rows, identity("anne")).datasets(order.config, order.model)
    expected = [row for row in rows if row.origin in HELD_OUT]
    model = order.model
    alike = encode(expected, "classification", model.tokenizer, 16, model.labels)
    assert held.held_out is not None
    assert held.held_out.tokens.tolist() == alike.tokens.tolist()
    assert held.held_out.targets.tolist() == alike.targets.tolist()


@STORED
def test_the_authoritys_log_is_read_and_written_as_it_was(tmp_path, stored):
    path = stored / "rounds.jsonl"
    entries = read_log(path, ROSTER.authority)
    assert [(e.number, e.event, e.run, e.round, e.attempt, e.sites) for e in entries] == [
        (1, "opened", "run-1", 1, 1, COHORT),
        (2, "summed", "run-1", 1, 1, SURVIVORS),
        (3, "opened", "run-1/evaluation", 2, 2, COHORT),
        (4, "summed", "run-1/evaluation", 2, 2, ("anne", "bob", "carl")),
    ]
    for line in read_lines(path):
        signature = line.pop("signature")
        entry = LogEntry(**{**line, "sites": tuple(line["sites"])})
        assert identity("authority").sign(entry.signed_bytes()).hex() == signature
    shutil.copy(path, tmp_path)
    with pytest.raises(FedllmError, match="opened before"):
        RoundLog(tmp_path / "rounds.jsonl", identity("authority")).add(STATEMENT)
    content = path.read_bytes()
    # A last line without its end was cut off by a crash, and is left out.
    for changed in damaged(content[:-1], every=23):
        (tmp_path / "rounds.jsonl").write_bytes(changed + b"\n")
        with pytest.raises(PeerError):
            read_log(tmp_path / "rounds.jsonl", ROSTER.authority)


@STORED
def test_a_sites_own_log_has_its_fields(stored):
    line = read_lines(stored / "sites" / "anne.log")[0]
    assert (line["run"], line["round"], line["attempt"]) == ("run-1", 1, 1)
    assert set(line["seconds"]) == {"train", "encrypt"}
