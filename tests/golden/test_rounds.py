"""A kept round is read for ever: every message, every signature, and the sum that it opens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from golden.kept import COHORT, SURVIVORS, V1, V2, V6, damaged, identity, read, read_lines, records
from golden.kept_rounds import (
    CLEAR,
    DRAW,
    EARLIER,
    EARLIER_CLEAR,
    FIFTH,
    FOURTH,
    FOURTH_CLEAR,
    IN_CLEAR,
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
from support.tasks import encode
from typer.testing import CliRunner

from fedllm.canonical import canonical_json, sha256, sha256_hex, signing_bytes
from fedllm.commands.audit import app as audit_commands
from fedllm.commands.ledger import app as ledger_commands
from fedllm.config import AllowSection, BudgetSection, SitePolicy, parse
from fedllm.config.run import RunConfig
from fedllm.encryption.escrow import Escrow
from fedllm.encryption.survivors import survivor_statement
from fedllm.errors import FedllmError, PeerError, RefusedError
from fedllm.federation.authority.round_log import LogEntry, RoundLog, read_log
from fedllm.federation.protocol import messages
from fedllm.federation.protocol.cohorts import CohortMember, member_statement
from fedllm.federation.protocol.masks import mask_scope, reveal_purpose
from fedllm.federation.protocol.messages import Settle, Wire
from fedllm.federation.protocol.refusals import Refusal
from fedllm.federation.protocol.round_statement import RoundStatement, round_statement
from fedllm.federation.protocol.statements import (
    check_member,
    check_members,
    make_member,
    read_statement,
)
from fedllm.federation.protocol.wire import digest
from fedllm.federation.site.carrying import require_carried
from fedllm.federation.site.charging import SiteAccount
from fedllm.federation.site.data import SiteData
from fedllm.federation.site.files import SiteFiles
from fedllm.federation.site.memory import SiteMemory
from fedllm.federation.site.orders import OrderReader
from fedllm.federation.site.site import Site
from fedllm.federation.transport.flower import from_content, to_content
from fedllm.privacy.ledger.audit import export_ledger, read_state, verify_ledger
from fedllm.privacy.ledger.charges import SettledOn
from fedllm.privacy.ledger.heads import read_heads
from fedllm.tasks.cache import ModelCache

ANSWERS = [
    *(path for path in sorted(V1.glob("refusal/[A-Z]*.json")) if path.stem != "Joined"),
    *V2.glob("refusal/[A-Z]*.json"),
    *V6.glob("refusal/[A-Z]*.json"),
]
# What a site and the key authority keep is read whichever version wrote it.
STORED = pytest.mark.parametrize(
    "stored",
    [ROUND, FIFTH, FOURTH, THIRD, SECOND, EARLIER],
    ids=["v6", "v5", "v4", "v3", "v2", "v1"],
)
EARLIER_STORED = pytest.mark.parametrize("stored", [THIRD, SECOND, EARLIER], ids=["v3", "v2", "v1"])
# Of the kept statement: masks and ledgers hang on it.
DIGEST = "a8328fb2e8ee0e6c4e63e8d0583be6c3441fa9821c3a351769180286b067cfc6"
HELD_OUT = [f"anne.jsonl:{n}" for n in (1, 2, 4, 6, 8, 9, 10)]
SETTLED = (ROUND, FIFTH, FOURTH)
ENCRYPTED = (ROUND, FIFTH, FOURTH, THIRD, SECOND, EARLIER)
IN_THE_CLEAR = (CLEAR, FOURTH_CLEAR, THIRD_CLEAR, SECOND_CLEAR, EARLIER_CLEAR)
NAMES = [
    (folder, path.stem)
    for folder in (*ENCRYPTED, *IN_THE_CLEAR, DRAW)
    for path in sorted(folder.glob("messages/[A-Z]*.json"))
]
# What they say has other parts since version 6; `test_refused` has those of before.
OTHER_SINCE = ("Train", "Settle", "Settled", "Unmask", "OpenRound")
READ = [
    (folder, name)
    for folder, name in NAMES
    if name.partition("-")[0] not in OTHER_SINCE or folder in (ROUND, CLEAR, DRAW)
]
# Of large cohorts alone, and only since version 6.
DRAWING = {"Draw", "Drawn"}
# For sites that go away, since version 6.
RECOVERING = {"Ready", "Readied", "Recover", "Recovered"}


def _id(value: Path | str) -> str:
    return value if isinstance(value, str) else str(value.relative_to(V1.parent))


@pytest.mark.parametrize(("folder", "name"), READ, ids=_id)
def test_each_message_is_read_and_written_as_it_was(folder, name):
    found = message(name, folder)
    header, blobs = found.to_wire()
    kept = (folder / "messages" / f"{name}.json").read_text()
    # Before, a site did not say its size with its yes; and first not its name either.
    if name.startswith("Joined") and folder.parent in (V1, V2):
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
    for folder in ENCRYPTED:
        found = {name.partition("-")[0] for kept, name in NAMES if kept == folder}
        assert found == kinds - DRAWING - (set() if folder == ROUND else RECOVERING)
    assert {name.partition("-")[0] for kept, name in NAMES if kept == DRAW} == DRAWING
    assert {path.stem for path in ANSWERS} < kinds


def test_large_parts_travel_in_arrays_of_this_type():
    content = to_content("{}", {"update": bytes(1 << 19)})
    assert content.array_records["blobs"]["update"].stype == "fedllm.bytes.v1"
    assert to_content("{}", {"plan": b"x"}).config_records["header"]["blob.plan"] == b"x"


@pytest.mark.parametrize("path", ANSWERS, ids=_id)
def test_each_refusal_is_read_and_written_as_it_was(path):
    kind = getattr(messages, path.stem)
    blobs = {
        "Trained": "update",
        "Settled": "escrow",
        "RoundOpened": "public_key",
        "SumOpened": "levels",
    }
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
    # carl was told of another model than the cohort, which since version 4 nobody signed.
    kinds = [message("Trained-carl", folder).header.refusal.kind for folder in (THIRD, ROUND)]
    assert kinds == ["RefusedError", "PeerError"]


def test_the_signed_statement_says_what_it_said():
    assert (STATEMENT.kind, STATEMENT.run, STATEMENT.round) == ("fedllm.round.v5", "run-1", 1)
    assert RoundStatement.model_fields["kind"].default == STATEMENT.kind
    assert (STATEMENT.attempt, STATEMENT.purpose, STATEMENT.rounds) == (1, "update", 2)
    assert (STATEMENT.cohort, STATEMENT.min_sites, STATEMENT.series) == (COHORT, 2, "run-1")
    assert (STATEMENT.neighbours, STATEMENT.missing, STATEMENT.colluders) == (0, 0, 0)
    evaluation = STATEMENT.model_copy(update={"purpose": "evaluation"})
    assert evaluation.series == "run-1/evaluation", "in logs"
    assert STATEMENT.digest == DIGEST
    assert TRAIN.digests().model_dump().items() <= STATEMENT.model_dump().items()
    assert STATEMENT.config == digest(TRAIN.header.config)
    assert STATEMENT.adapter == digest(TRAIN.adapter)
    assert STATEMENT.model == TRAIN.header.model
    assert STATEMENT.labels == digest(signing_bytes("fedllm.labels.v1", *TRAIN.header.labels))
    bounds = json.dumps(TRAIN.header.bounds, separators=(",", ":"))
    assert STATEMENT.bounds == digest(signing_bytes("fedllm.bounds.v1", bounds))
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


def test_the_cohorts_entries_have_the_digest_that_they_had():
    check_members(STATEMENT, MEMBERS, ROSTER)
    leaves = [
        sha256(signing_bytes("fedllm.cohort-leaf.v1", canonical_json(member)))
        for member in said("OpenRound", ROUND)["members"]
    ]
    # The third has nobody beside it, and goes up as it is.
    pair = sha256(signing_bytes("fedllm.cohort-node.v1", *leaves[:2]))
    both = sha256(signing_bytes("fedllm.cohort-node.v1", pair, leaves[2]))
    assert STATEMENT.members == both.hex()
    for name in COHORT:
        changed = [m.model_copy(update={"units": 1}) if m.name == name else m for m in MEMBERS]
        with pytest.raises(PeerError, match="digest is of other entries"):
            check_members(STATEMENT, changed, ROSTER)


@pytest.mark.parametrize("name", COHORT)
def test_a_member_is_signed_as_it_was(name):
    member = next(m for m in MEMBERS if m.name == name)
    assert member == message(f"Joined-{name}").header.member
    assert make_member(identity(name), LEDGERS[name], "run-1", 0) == member
    check_member(member, "run-1", ROSTER)
    words = member_statement("run-1", name, member.mask_key, member.units)
    assert words == signing_bytes("fedllm.member.v3", "run-1", name, member.mask_key, "0")
    for changed in damaged(member.mask_key.encode(), every=9):
        with pytest.raises(PeerError):
            check_member(
                CohortMember(**{**dict(member), "mask_key": changed.decode()}), "run-1", ROSTER
            )


def files(folder, name="anne") -> SiteFiles:
    """Return where a site keeps what it must not lose."""
    return SiteFiles(*(folder / f"{name}.{kind}" for kind in ("sqlite", "json", "log")))


def site(folder, stored=ROUND, name="anne") -> Site:
    """Return a site of today with what it kept."""
    for kept in (stored / "sites").iterdir():
        shutil.copy(kept, folder)
    return Site(
        identity=identity(name),
        roster=ROSTER,
        policy=SitePolicy(
            budget=BudgetSection(epsilon=8.0, colluders_epsilon=64.0),
            allow=AllowSection(encryption="optional", non_private=True),
        ),
        files=files(folder, name),
        model_path=str(V1 / "model"),
        records=lambda task: records(EARLIER / "records" / f"{name}.jsonl"),
        models=ModelCache(),
    )


@pytest.mark.parametrize(
    ("order", "folder", "scheme"), [(TRAIN, ROUND, "bfv"), (IN_CLEAR, CLEAR, "none")]
)
def test_a_kept_order_is_accepted(order, folder, scheme):
    allow = AllowSection(encryption="optional", non_private=True)
    reader = OrderReader(identity("anne"), ROSTER, allow, ModelCache(), str(V1 / "model"))
    found = reader.order(order, read(folder / "ledgers.json")["anne"])
    assert (found.around.own.name, set(found.around.others)) == ("anne", {"bob", "carl"})
    assert found.config == parse(RunConfig, found.config.model_dump(mode="json"), "again")
    assert (found.plan.scheme, found.plan.length) == (scheme, 31)
    assert found.model.initial.tobytes() == order.adapter == found.adapter.tobytes()


def test_a_site_with_its_kept_ledger_answers_as_it_did(tmp_path):
    anne = site(tmp_path)
    # Its last attempt was an evaluation; the ledger tells both apart.
    settled, was = anne.settle(message("Settle")), message("Settled-anne")
    assert settled.header == was.header
    # What is locked is sealed anew each time; with the same shares it opens.
    left = [Escrow.from_bytes(found.escrow) for found in (settled, was)]
    assert left[0].points == left[1].points
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


@pytest.mark.parametrize("stored", ENCRYPTED[1:], ids=["v5", "v4", "v3", "v2", "v1"])
def test_a_site_with_a_ledger_of_before_settles_on_nothing(tmp_path, stored):
    anne = site(tmp_path, stored)
    before = SiteAccount(files(tmp_path), identity("anne"), SitePolicy()).head()
    for ask, name in ((anne.settle, "Settle"), (anne.unmask, "Unmask")):
        # Its entry in the cohort is of another ledger.
        assert ask(message(name)).header.refusal.kind == "PeerError"
    assert SiteAccount(files(tmp_path), identity("anne"), SitePolicy()).head() == before


def test_the_memory_knows_the_end_of_the_ledger():
    head = SiteMemory(ROUND / "sites" / "anne.json").head()
    path, key = ROUND / "sites" / "anne.sqlite", ROSTER.sites["anne"]
    assert head is not None
    assert str(read_state(path, key, [head]).head) == str(head)


@EARLIER_STORED
def test_a_memory_of_before_says_that_the_site_has_trained(tmp_path, stored):
    shutil.copy(stored / "sites" / "anne.json", tmp_path)
    memory = SiteMemory(tmp_path / "anne.json")
    assert memory.used()
    assert memory.head() is None
    with pytest.raises(RefusedError, match="its ledger is gone"):
        require_carried(files(tmp_path), identity("anne"), ROSTER)


def words_of_before(statement: str) -> bytes:
    """Return what survivors signed under versions 4 and 5."""
    about = (digest_of_before(statement), PLAN.fingerprint())
    scope = signing_bytes("fedllm.mask-scope.v3", *about, *COHORT)
    return signing_bytes("fedllm.survivors.v2", scope, *SURVIVORS)


@STORED
def test_the_ledger_of_a_kept_site_knows_its_rounds(tmp_path, stored):
    for name in ("anne.sqlite", "anne.json"):
        shutil.copy(stored / "sites" / name, tmp_path)
    require_carried(files(tmp_path), identity("anne"), ROSTER)
    account = SiteAccount(files(tmp_path), identity("anne"), SitePolicy())
    heads = read_heads(stored / "ledger_heads.jsonl")
    path = tmp_path / "anne.sqlite"
    state = read_state(path, ROSTER.sites["anne"], heads["anne"])
    # Since version 4 it also says on which sum the site settled, after its update left.
    kept = heads["anne"][-1].sequence + (stored in SETTLED)
    assert account.head().sequence == kept == state.head.sequence
    training, evaluation = state.reservations.values()
    assert (training.run, training.purpose, evaluation.purpose) == (
        "run-1",
        "training",
        "evaluation",
    )
    assert {c.name for c in (training, evaluation)} == {"" if stored == EARLIER else "kept"}
    theirs = said("Train", stored)["statement"]
    assert training.events[0].noise_multiplier == json.loads(theirs)["noise_multiplier"]
    assert training.colluder_events != training.events
    named = [(c.statement, c.order_attempt) for c in (training, evaluation)]
    if stored not in SETTLED:
        assert (named, state.settled) == ([("", 0)] * 2, {})
        return
    assert (named[0], named[1][1]) == ((digest_of_before(theirs), 1), 2)
    words = survivor_statement(mask_scope(STATEMENT, PLAN), SURVIVORS)
    if stored != ROUND:
        words = words_of_before(theirs)
    assert state.settled[training.sequence] == SettledOn(sha256_hex(words), 2)
    assert state.settled[evaluation.sequence].sites == 3


@pytest.mark.parametrize("kind", ["sqlite", "jsonl"])
def test_the_commands_of_auditors_read_a_ledger_with_settled_sums(kind):
    path, heads = str(ROUND / "sites" / f"anne.{kind}"), str(ROUND / "ledger_heads.jsonl")
    shown, checked, audited = (
        json.loads(CliRunner().invoke(app, [*asked, "--json"], catch_exceptions=False).stdout)
        for app, asked in (
            (ledger_commands, ["show", path]),
            (ledger_commands, ["verify", path, "--heads", heads]),
            (audit_commands, ["epsilon", path, "--heads", heads]),
        )
    )
    assert shown == checked
    (run,) = shown["accounts"][0]["runs"]
    assert (shown["entries"], run["committed"], run["reserved_only"]) == (7, 2, 0)
    (found,) = audited["ledgers"]
    assert found["head"] == shown["head"]
    assert found["accounts"][0]["claimed"] == shown["accounts"][0]["epsilon"]


def test_a_ledger_with_sums_settled_on_is_exported_and_verified(tmp_path):
    path, out = ROUND / "sites" / "anne.sqlite", tmp_path / "export.jsonl"
    export_ledger(path, out)
    kinds = [line["content"]["kind"] for line in read_lines(out)[1:]]
    assert kinds == ["reserve", "commit", "settle"] * 2
    heads = read_heads(ROUND / "ledger_heads.jsonl")["anne"]
    found = [verify_ledger(each, ROSTER.sites["anne"], heads) for each in (path, out)]
    assert found[0] == found[1]


def test_the_same_records_are_held_out():
    allow = AllowSection(encryption="optional", non_private=True)
    reader = OrderReader(identity("anne"), ROSTER, allow, ModelCache(), str(V1 / "model"))
    order = reader.order(TRAIN, LEDGERS["anne"])
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
