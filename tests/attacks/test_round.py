"""What a dishonest coordinator, site or authority tries in a round, and what it gets."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from support.chance import FALSE_ALARM, uniform_below
from support.federation import addressed, build, records, small_config

from fedllm.config import AllowSection, BudgetSection, SitePolicy
from fedllm.data.records import Record
from fedllm.encryption.pack import unpack
from fedllm.encryption.plan import EncryptionPlan
from fedllm.encryption.schemes import PublicRoundKey, SecretRoundKey
from fedllm.errors import (
    BudgetError,
    DataError,
    FedllmError,
    PeerError,
    RefusedError,
    RepeatError,
)
from fedllm.federation.authority import authority as authority_module
from fedllm.federation.protocol.messages import OpenSum, OpenSumHeader, Settle, Train
from fedllm.federation.protocol.refusals import Refusal
from fedllm.federation.protocol.round_statement import round_statement
from fedllm.federation.site.site import Site
from fedllm.privacy.ledger.ledger import Ledger


@pytest.fixture
def federation(tiny_checkpoint, tmp_path):
    return build(tmp_path, small_config(tiny_checkpoint("bert")))


def changed(message, **header):
    """Return a message with other header fields."""
    return dataclasses.replace(message, header=message.header.model_copy(update=header))


def capture_order(federation, number=1, attempt=1) -> Train:
    """Run a round and return the order that the first site was sent."""
    orders = []

    def listen(kind, name, message):
        if kind == "train request":
            orders.append(message)
        return message

    federation.tamper, before = listen, federation.tamper
    federation.round(number, attempt)
    federation.tamper = before
    return orders[0]


def charged(federation, name="site-0"):
    ledger = Ledger.open(federation.folder / f"{name}.sqlite", name, federation.identities[name])
    return len(ledger.events_of_run("run-1"))


def test_a_coordinator_that_swaps_in_its_own_key_gets_nothing(federation):
    secret = {}

    def swap(kind, name, message):
        if kind == "train request":
            plan = EncryptionPlan.from_bytes(message.plan)
            secret["key"] = SecretRoundKey.generate(plan)
            return dataclasses.replace(message, public_key=secret["key"].public_context())
        return message

    federation.tamper = swap
    with pytest.raises(PeerError, match="public key is not the signed one"):
        federation.round()
    assert charged(federation) == 0


def test_a_key_and_statement_signed_by_the_coordinator_itself_are_refused(federation):
    def sign_anew(kind, name, message):
        if kind != "train request":
            return message
        plan = EncryptionPlan.from_bytes(message.plan)
        public = SecretRoundKey.generate(plan).public_context()
        statement = json.loads(message.header.statement)
        statement["key"] = PublicRoundKey.from_bytes(plan, public).fingerprint
        text = json.dumps(statement)
        signature = federation.identities["site-2"].sign(round_statement(text)).hex()
        forged = changed(message, statement=text, signature=signature)
        return dataclasses.replace(forged, public_key=public)

    federation.tamper = sign_anew
    with pytest.raises(PeerError, match="signature of 'the key authority' does not fit"):
        federation.round()
    assert charged(federation) == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("config", 'name = "x"\n'),
        ("signature", "00" * 64),
        ("signature", "not hexadecimal"),
        ("model", "0" * 64),
        ("bounds", ((1, 1.0),)),
        ("statement", "{}"),
    ],
)
def test_an_altered_order_is_refused_before_anything_is_charged(federation, field, value):
    federation.tamper = lambda kind, name, m: (
        changed(m, **{field: value}) if kind == "train request" else m
    )
    with pytest.raises(FedllmError):
        federation.round()
    assert charged(federation) == 0


def test_a_weaker_configuration_than_the_signed_one_is_refused(tiny_checkpoint, tmp_path):
    federation = build(tmp_path, small_config(tiny_checkpoint("bert"), privacy={"epsilon": 1.0}))

    def weaken(kind, name, message):
        if kind == "train request":
            text = message.header.config.replace("epsilon = 1.0", "epsilon = 100.0")
            assert text != message.header.config
            return changed(message, config=text)
        return message

    federation.tamper = weaken
    with pytest.raises(PeerError, match=r"not what was signed .* the order's configuration"):
        federation.round()
    assert charged(federation) == 0


def test_a_cohort_of_one_is_refused_by_authority_and_site(federation):
    with pytest.raises(RefusedError, match="minimum here is 2"):
        federation.round(min_sites=1)
    assert charged(federation) == 0


def test_a_cohort_filled_up_with_invented_sites_is_refused(federation):
    from fedllm.federation.coordinator.cohort import gather_cohort
    from fedllm.federation.coordinator.rounds import statement_of
    from fedllm.federation.protocol.statements import make_member
    from fedllm.identity.keys import Identity

    cohort = gather_cohort(federation, federation.terms, 1, federation.roster, print)
    ghosts = tuple(make_member(Identity.generate(f"zz-{i}"), "", "run-1", 0) for i in range(2))
    filled = (cohort[0], *ghosts)
    statement = statement_of(federation.terms, filled, 1, 1, None)
    with pytest.raises(PeerError, match="not in the roster"):
        federation.run(statement, filled)
    # In the names of sites that are in the roster: no site has signed these entries.
    named = tuple(
        ghost.model_copy(update={"name": name})
        for ghost, name in zip(ghosts, ("site-1", "site-2"), strict=True)
    )
    filled = (cohort[0], *named)
    statement = statement_of(federation.terms, filled, 1, 2, None)
    with pytest.raises(PeerError, match="signature of 'site-1' does not fit"):
        federation.run(statement, filled)
    # Nor does it help to show the authority other entries than it signs.
    with pytest.raises(PeerError, match="the cohort's digest is of other entries"):
        federation.run(statement, cohort)
    assert charged(federation) == 0


def test_the_same_attempt_is_not_trained_twice(federation):
    order = capture_order(federation)
    again = federation.sites["site-0"].train(order)
    assert again.update == b""
    assert "was carried out before" in again.header.refusal.message
    assert charged(federation) == 1


def test_a_replayed_or_stolen_update_is_dropped(tiny_checkpoint, tmp_path):
    config = small_config(tiny_checkpoint("bert"), data={"sites": 4}, rounds={"count": 3})
    federation = build(tmp_path, config, {f"site-{i}": records(40, seed=i) for i in range(4)})
    first = {}

    def keep(kind, name, message):
        if kind == "train":
            first[name] = message
        return message

    federation.tamper = keep
    federation.round(1, 1)

    def replay(kind, name, message):
        if kind == "train" and name == "site-0":
            return first["site-0"]
        return message

    federation.tamper = replay
    outcome = federation.round(2, 2)
    assert set(outcome.dropped) == {"site-0"}

    fresh = {}

    def steal(kind, name, message):
        if kind == "train":
            fresh[name] = message
            if name == "site-1":
                return dataclasses.replace(fresh["site-0"], header=message.header)
        return message

    federation.tamper = steal
    outcome = federation.round(3, 3)
    assert set(outcome.dropped) == {"site-1"}


def test_one_flipped_bit_anywhere_drops_the_update(federation):
    rng = np.random.default_rng(1)
    for attempt in range(1, 6):

        def flip(kind, name, message):
            if kind == "train" and name == "site-1":
                update = bytearray(message.update)
                update[rng.integers(len(update))] ^= 1 << int(rng.integers(8))
                return dataclasses.replace(message, update=bytes(update))
            return message

        federation.tamper = flip
        assert set(federation.round(1, attempt).dropped) == {"site-1"}


@pytest.mark.parametrize("update", [b"", b"x", b"x" * 10_000_000])
def test_bytes_that_are_no_update_drop_their_sender_alone(federation, update):
    federation.tamper = lambda kind, name, m: (
        dataclasses.replace(m, update=update) if (kind, name) == ("train", "site-2") else m
    )
    assert federation.round().survivors == ("site-0", "site-1")


def test_a_site_settles_on_one_set_of_survivors_only(federation):
    order = capture_order(federation)
    about = {"statement": order.header.statement, "signature": order.header.signature}
    site: Site = federation.sites["site-0"]
    from fedllm.federation.protocol.messages import SettleHeader

    said = ("site-0", "site-1")
    header = SettleHeader(**about, survivors=said, around=order.header.around)
    other = addressed(Settle(header, order.plan), "site-0")
    answer = site.settle(other)
    assert answer.header.signature == ""
    assert "settled on other survivors" in answer.header.refusal.message


def test_a_false_dropout_told_to_some_sites_opens_nothing(federation):
    """The coordinator wants site-2's update: it tells others that site-2 dropped out."""

    def two_stories(kind, name, message):
        if kind == "settle request" and name != "site-2":
            return changed(message, survivors=("site-0", "site-1"))
        return message

    federation.tamper = two_stories
    with pytest.raises((PeerError, RefusedError)):
        federation.round()


def test_masks_come_off_only_with_every_survivors_own_signature(federation):
    def forge(kind, name, message):
        if kind == "settle" and name == "site-1":
            return changed(message, signature="11" * 64)
        return message

    federation.tamper = forge
    with pytest.raises(PeerError, match="signature of 'site-1'"):
        federation.round()
    assert "unmask" not in {kind for kind, _ in federation.heard}, "nobody is asked in vain"


def test_a_site_does_not_settle_in_anothers_name(federation):
    federation.tamper = lambda asked, name, message: (
        changed(message, site="site-2") if (asked, name) == ("settle", "site-1") else message
    )
    with pytest.raises(PeerError, match="'site-1' answered as 'site-2'"):
        federation.round()


def test_a_site_that_reveals_in_anothers_name_has_gone_away(federation):
    federation.tamper = lambda asked, name, message: (
        changed(message, site="site-2") if (asked, name) == ("unmask", "site-1") else message
    )
    assert federation.round().recovered == {"site-1": "'site-1' answered as 'site-2'"}


@pytest.mark.parametrize("owner", ["site-0", "site-9"], ids=["itself", "nobody"])
def test_a_site_has_no_share_of_what_is_no_others(federation, owner):
    refusals = []

    def ask(kind, name, message):
        if (kind, name) == ("unmask", "site-1"):
            return None
        if (kind, name) == ("recover request", "site-0"):
            return changed(message, owners=(owner,))
        if (kind, name) == ("recover", "site-0"):
            refusals.append(message.header.refusal)
        return message

    federation.tamper = ask
    with pytest.raises(PeerError, match="the others could not take its masks off"):
        federation.round()
    (refusal,) = refusals
    assert (refusal.kind, "not in its neighbourhood" in refusal.message) == ("PeerError", True)


def test_the_coordinator_carries_reveals_that_it_cannot_read(federation):
    """Own seeds and pair seeds pass through it only sealed for the authority's round key."""
    seeds, carried = [], []

    def listen(kind, name, message):
        if kind == "unmask":
            carried.append(message.header.reveal)
        return None if (kind, name) == ("train", "site-2") else message

    original = authority_module.take_masks_off

    def note(slots, scope, survivors, signatures, reveals, roster):
        for blob in reveals:
            values = json.loads(blob)
            seeds.extend([values["own"], *values["pairs"].values()])
        return original(slots, scope, survivors, signatures, reveals, roster)

    federation.tamper = listen
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(authority_module, "take_masks_off", note)
        federation.round()
    assert len(seeds) == 4
    assert len(carried) == 2
    assert not any(seed in text for seed in seeds for text in carried)


def test_a_reveal_of_another_site_or_attempt_does_not_open(federation):
    kept = {}

    def swap(kind, name, message):
        if kind != "unmask":
            return message
        kept.setdefault(name, message)
        other = kept["site-0"] if name == "site-1" else kept[name]
        return changed(other, site=name)

    federation.tamper = swap
    for attempt in (1, 2):
        with pytest.raises(PeerError, match="sealed message does not open"):
            federation.round(1, attempt)
        # The second time site-0's reveal is that of the first attempt.
        kept.pop("site-1")


def test_an_authority_with_another_reveal_key_in_its_name_is_refused(federation):
    """The coordinator swaps in its own key to read the reveals: the signature does not fit."""
    from fedllm.identity.sealing import SealingKey

    def own_key(kind, name, message):
        if not kind.endswith("request") or kind == "join request":
            return message
        statement = json.loads(message.header.statement)
        statement["reveal_key"] = SealingKey().public_bytes().hex()
        return changed(message, statement=json.dumps(statement))

    federation.tamper = own_key
    with pytest.raises(PeerError, match="signature of 'the key authority'"):
        federation.round()


def test_the_authority_opens_one_sum_of_a_round_and_no_second(federation):
    opened = []
    original = federation.authority.open_sum

    def twice(request):
        first = original(request)
        opened.append(original(request))
        return first

    federation.authority.open_sum = twice
    federation.round()
    assert opened[0].levels == b""
    assert "not open" in opened[0].header.refusal.message


def test_the_authority_does_not_open_a_round_twice(federation):
    federation.round(1, 1)
    with pytest.raises(RepeatError, match="was opened before"):
        federation.round(1, 1)


def test_the_authority_refuses_a_sum_of_too_few(tiny_checkpoint, tmp_path):
    federation = build(tmp_path, small_config(tiny_checkpoint("bert")))
    original = federation.authority.open_sum

    def alone(request: OpenSum):
        header = OpenSumHeader(
            statement=request.header.statement,
            signature=request.header.signature,
            survivors=("site-0",),
        )
        return original(OpenSum(header, request.total))

    federation.authority.open_sum = alone
    with pytest.raises(RefusedError, match="the sum holds 1 sites"):
        federation.round()


def test_an_update_opened_with_the_key_alone_is_noise(tiny_checkpoint, tmp_path):
    """Coordinator and authority together: the ciphertext opens, the mask does not."""
    from fedllm.encryption.envelope import _PREFIX

    def first_update(masks: bool):
        config = small_config(
            tiny_checkpoint("bert"),
            encryption={"masks": masks, "bits": 24},
            lora={"rank": 16, "last_layers": 3},
        )
        folder = tmp_path / str(masks)
        folder.mkdir()
        federation = build(folder, config)
        held = {}

        def listen(kind, name, message):
            if kind == "train":
                held[name] = message.update
                held.setdefault("key", federation.authority._secret)
            return message

        federation.tamper = listen
        original = federation.authority.open_sum

        def collude(request):
            key: SecretRoundKey = federation.authority._secret
            payload = held["site-0"][-key.plan.update_bytes :]
            held["slots"] = key.decrypt_sum(payload)
            held["plan"] = key.plan
            return original(request)

        federation.authority.open_sum = collude
        with pytest.raises(FedllmError):
            federation.round()
        assert _PREFIX.size > 0
        return held["slots"], held["plan"]

    slots, plan = first_update(masks=False)
    assert slots[-1] == 1, "without masks the colluders read one site's update"
    assert uniform_below(slots, plan.plain_modulus) < FALSE_ALARM
    masked, plan = first_update(masks=True)
    assert uniform_below(masked, plan.plain_modulus) > FALSE_ALARM
    with pytest.raises(PeerError):
        unpack(masked, plan, 1)


def test_no_private_text_leaves_with_an_error(tiny_checkpoint, tmp_path):
    secret = "Mrs Example has a rare disease"
    rows = [
        *records(20),
        Record({"text": secret, "label": secret}, None, None, "private-file-of-mrs-example.csv:7"),
    ]
    data = {"site-0": rows, "site-1": records(20, seed=1), "site-2": records(20, seed=2)}
    config = small_config(tiny_checkpoint("bert"))
    federation = build(tmp_path, config, data, full_errors=False)
    texts = []

    def listen(kind, name, message):
        if not kind.endswith("request"):
            texts.append(message.to_wire()[0])
        return message

    federation.tamper = listen
    federation.round()
    assert all('"refusal":null' in text for text in texts)
    assert "example" not in " ".join(texts).lower()
    assert "mrs-example.csv:7: its label is not one of" in (tmp_path / "site-0.log").read_text()


def test_an_unforeseen_error_leaves_no_private_text_in_the_sites_log(
    tiny_checkpoint, tmp_path, monkeypatch
):
    def fail(*_):
        raise ValueError("could not parse 'Mrs Example has a rare disease'")

    monkeypatch.setattr("fedllm.federation.site.data.SiteData._encode", fail)
    data = {f"site-{i}": records(20, seed=i) for i in range(3)}
    federation = build(tmp_path, small_config(tiny_checkpoint("bert")), data, full_errors=False)
    with pytest.raises(FedllmError):
        federation.round()
    log = (tmp_path / "site-0.log").read_text()
    assert "ValueError" in log
    assert "test_round.py:" in log
    assert "Example" not in log


def test_an_unforeseen_error_shrinks_to_its_kind():
    error = ValueError("secret of a patient")
    for of in (Refusal.of_site, Refusal.of_authority):
        refusal = of(error, full_text=False)
        assert "patient" not in refusal.model_dump_json()
        assert refusal.kind == "FedllmError"
        assert "patient" in of(error, full_text=True).message


@pytest.mark.parametrize("kind", [RefusedError, BudgetError, RepeatError, PeerError, DataError])
def test_a_site_refuses_in_the_same_words_whatever_its_reasons_are(kind):
    refusals = {
        Refusal.of_site(kind(f"0.4734 of {number} is spent", f"raise {number}"), False)
        for number in range(3)
    }
    assert len(refusals) == 1
    (refusal,) = refusals
    assert refusal.kind == kind.__name__
    assert type(refusal.to_error("site-0")) is kind


def test_a_refusal_of_the_ledger_names_no_file_of_the_site():
    from fedllm.privacy.ledger.entries import LedgerRefusal

    error = LedgerRefusal("the ledger /records/mrs-example.sqlite belongs to another site")
    for of in (Refusal.of_site, Refusal.of_authority):
        refusal = of(error, full_text=False)
        assert "example" not in refusal.model_dump_json()
        assert isinstance(refusal.to_error("site"), RefusedError), "the exit code stays"


def test_a_site_that_forgot_what_it_did_refuses_to_go_on(federation):
    capture_order(federation)
    (federation.folder / "site-0.json").write_text("{ half")
    outcome = federation.round(2, 2)
    assert "damaged" in outcome.dropped["site-0"]


def test_a_site_that_lost_its_memory_does_not_train_an_attempt_again(federation):
    """The coordinator asks once more; the ledger knows, whatever else was lost."""
    order = capture_order(federation)
    (federation.folder / "site-0.json").unlink()
    for name in ("site-0", "site-1"):
        again = federation.sites[name].train(addressed(order, name))
        assert (again.update, again.header.refusal.kind) == (b"", "RepeatError")
    assert charged(federation) == 1


def test_a_site_holds_to_the_minimum_that_the_operator_signed(federation):
    """The key authority forgot it; the site's own policy allows sums of one."""
    site = federation.sites["site-0"]
    roster = dataclasses.replace(federation.roster, min_cohort=3)
    site._orders = dataclasses.replace(site._orders, roster=roster)
    assert "minimum here is 3" in federation.round().dropped["site-0"]
    assert charged(federation) == 0


def test_a_peers_words_do_not_steer_a_terminal():
    refusal = Refusal(
        kind="PeerError", message="\x1b]0;owned\x07 \u202e" + "x" * 10**6, remedy="\x9b2J"
    )
    error = refusal.to_error("site")
    assert isinstance(error, PeerError)
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(str(error))
    assert len(str(error)) < 10_000


def test_a_site_counts_a_failed_training_as_spent(tiny_checkpoint, tmp_path, monkeypatch):
    from fedllm.federation.site import work as site_work

    policy = SitePolicy(budget=BudgetSection(epsilon=2.0), allow=AllowSection(min_cohort=1))
    config = small_config(tiny_checkpoint("bert"), privacy={"epsilon": 2.0})
    federation = build(tmp_path, config, policy=policy)

    def crash(*_args, **_keywords):
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(site_work, "train_locally", crash)
        with pytest.raises(FedllmError):
            federation.round()
    assert charged(federation) == 1
