"""Orders that do not fit: each is refused in its own words before anything is charged or begun."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from support.federation import build, small_config

from fedllm.encryption.plan import EncryptionPlan, make_plan
from fedllm.encryption.schemes import PublicRoundKey, SecretRoundKey
from fedllm.errors import FedllmError
from fedllm.federation.protocol.cohorts import (
    CohortMember,
    CohortTree,
    Neighbour,
    Neighbourhood,
    cohort_digest,
)
from fedllm.federation.protocol.messages import (
    Draw,
    Ready,
    Recover,
    RecoverHeader,
    Settle,
    SettleHeader,
    SignedRound,
    Train,
    Unmask,
    UnmaskHeader,
    Wire,
)
from fedllm.federation.protocol.round_statement import round_statement
from fedllm.federation.protocol.statements import make_member
from fedllm.federation.site.orders import OrderReader
from fedllm.privacy.ledger.ledger import Ledger

SITE = "site-0"


@pytest.fixture(scope="module")
def place(tiny_checkpoint, tmp_path_factory):
    """A site, and the order for a round that none of the sites has carried out."""
    config = small_config(tiny_checkpoint("bert"), rounds={"count": 2, "min_sites": 2})
    federation = build(tmp_path_factory.mktemp("orders"), config)
    orders: list[Train] = []

    def catch(kind, name, message):
        if kind == "train request":
            orders.append(message)
            return None
        return message

    federation.tamper = catch
    with pytest.raises(FedllmError):
        federation.round()
    return SimpleNamespace(federation=federation, order=orders[0], site=federation.sites[SITE])


def signed(place, order: Train, **changes) -> Train:
    """Return an order whose statement says it and something else, signed by the authority."""
    said = order.digests().model_dump() | changes
    text = json.dumps(json.loads(order.header.statement) | said)
    signature = place.federation.identities["authority"].sign(round_statement(text)).hex()
    return headed(order, statement=text, signature=signature)


def headed(order: Train, **changes) -> Train:
    return dataclasses.replace(order, header=order.header.model_copy(update=changes))


def planned(place, *, sites: int = 3, **changes) -> Train:
    """Return an order under another encryption plan, with a key of that plan."""
    before = EncryptionPlan.from_bytes(place.order.plan)
    wanted = {"bits": before.bits, "length": before.length, "masked": before.masked} | changes
    plan = make_plan(before.scheme, wanted["bits"], sites, wanted["length"], wanted["masked"])
    public = SecretRoundKey.generate(plan).public_context()
    key = PublicRoundKey.from_bytes(plan, public).fingerprint
    order = dataclasses.replace(place.order, plan=plan.to_bytes(), public_key=public)
    return signed(place, order, plan=plan.fingerprint(), key=key)


def adapted(place, index: int, value: float) -> Train:
    adapter = np.frombuffer(place.order.adapter, dtype="<f4").copy()
    adapter[index] = value
    return started(place, adapter.tobytes())


def started(place, adapter: bytes) -> Train:
    return signed(place, dataclasses.replace(place.order, adapter=adapter))


def sent(place, **changes) -> Train:
    return signed(place, headed(place.order, **changes))


def configured(place, old: str, new: str) -> Train:
    text = place.order.header.config.replace(old, new)
    assert text != place.order.header.config
    return sent(place, config=text)


def entries(place) -> list[dict[str, str]]:
    """Return what the sites of the cohort say of themselves, by name."""
    return [one.member.model_dump() for one in place.order.header.around.near]


def cohort(place, change) -> Train:
    """Return an order of a cohort with other entries, of which this site is told."""
    members = [CohortMember(**entry) for entry in change(entries(place))]
    names = tuple(member.name for member in members)
    near = tuple(Neighbour(place=n, member=member) for n, member in enumerate(members))
    around = Neighbourhood(place=names.index(SITE) if SITE in names else 0, near=near)
    order = headed(place.order, around=around)
    return signed(place, order, cohort=names, members=cohort_digest(members))


def told(place, /, **changes) -> Train:
    """Return an order that tells this site other things of the signed cohort."""
    around = place.order.header.around.model_copy(update=changes)
    return headed(place.order, around=around)


def forged_entry(place) -> Train:
    """Return an order with an entry in which another site's size was changed."""
    near = list(place.order.header.around.near)
    larger = near[1].member.model_copy(update={"units": 1})
    near[1] = near[1].model_copy(update={"member": larger})
    return told(place, near=tuple(near))


def part_of_it(place) -> Train:
    """Return an order that tells this site of the first two alone, as a large cohort would."""
    members = [one.member for one in place.order.header.around.near]
    return headed(place.order, around=CohortTree(members).open(0, {1: ""}))


def own_entry(place, name: str, ledger: str) -> dict[str, str]:
    return make_member(place.federation.identities[name], ledger, "run-1", 0).model_dump()


def swapped_key(place) -> list[dict[str, str]]:
    """Return the cohort with another site's mask key in this one's name."""
    members = entries(place)
    other = own_entry(place, "site-1", place.federation.ledger_id("site-1"))
    return [{**other, "name": SITE}, *members[1:]]


SPLIT = "the encryption plan or the bounds are for another vector"
ORDERS = {
    "a shorter adapter": (
        lambda p: started(p, p.order.adapter[:-4]),
        "the adapter is not as long as this site's",
    ),
    "an adapter cut inside a number": (
        lambda p: started(p, p.order.adapter[:-1]),
        "the adapter is not as long as this site's",
    ),
    "a longer adapter": (
        lambda p: started(p, p.order.adapter + bytes(4)),
        "the adapter is not as long as this site's",
    ),
    "no adapter": (
        lambda p: started(p, b""),
        "the adapter is not as long as this site's",
    ),
    "NaN": (lambda p: adapted(p, 0, np.nan), "the adapter holds NaN or infinite values"),
    "infinity": (lambda p: adapted(p, -1, np.inf), "the adapter holds NaN or infinite values"),
    "minus infinity": (
        lambda p: adapted(p, 3, -np.inf),
        "the adapter holds NaN or infinite values",
    ),
    "a plan for two sites": (lambda p: planned(p, sites=2), "the plan is for a smaller cohort"),
    "a plan nobody signed": (
        lambda p: dataclasses.replace(p.order, plan=planned(p, bits=12).plan),
        "the encryption plan is not the signed one",
    ),
    "a plan without masks": (
        lambda p: planned(p, masked=False),
        "the encryption plan is not what the configuration asks for",
    ),
    "a plan for a longer vector": (
        lambda p: planned(p, length=EncryptionPlan.from_bytes(p.order.plan).length + 1),
        SPLIT,
    ),
    "a plan of another width": (lambda p: planned(p, bits=12), SPLIT),
    "an evaluation under the plan of an update": (
        lambda p: signed(p, p.order, purpose="evaluation"),
        SPLIT,
    ),
    "bounds of one segment": (
        lambda p: sent(p, bounds=((sum(n for n, _ in p.order.header.bounds), 1.0),)),
        "the bounds are for another adapter",
    ),
    "bounds that are too short": (
        lambda p: sent(p, bounds=p.order.header.bounds[:-1]),
        "the encryption plan or the bounds are for another vector",
    ),
    "larger bounds": (
        lambda p: sent(p, bounds=tuple((n, 2 * b) for n, b in p.order.header.bounds)),
        "the bounds are not those that follow from the run's configuration",
    ),
    "a bound that is no number": (
        lambda p: headed(p.order, bounds=tuple((n, np.nan) for n, _ in p.order.header.bounds)),
        "a value has no canonical JSON form (ValueError)",
    ),
    "unsigned bounds": (
        lambda p: headed(p.order, bounds=tuple((n, 2 * b) for n, b in p.order.header.bounds)),
        "not what was signed for this round: the order's bounds",
    ),
    "an unsigned adapter": (
        lambda p: dataclasses.replace(p.order, adapter=bytes(len(p.order.adapter))),
        "not what was signed for this round: the order's adapter",
    ),
    "unsigned labels": (
        lambda p: headed(p.order, labels=p.order.header.labels[::-1]),
        "not what was signed for this round: the order's labels",
    ),
    "labels run together": (
        lambda p: headed(p.order, labels=("".join(p.order.header.labels),)),
        "not what was signed for this round: the order's labels",
    ),
    "an unsigned base model": (
        lambda p: headed(p.order, model="0" * 64),
        "not what was signed for this round: the order's base model",
    ),
    "an unsigned configuration": (
        lambda p: headed(p.order, config=p.order.header.config + "\n"),
        "not what was signed for this round: the order's configuration",
    ),
    "a configuration that is no TOML": (
        lambda p: sent(p, config="="),
        "the coordinator sent a configuration that is not TOML",
    ),
    "fewer sites than the configuration says": (
        lambda p: signed(p, p.order, min_sites=1),
        "the minimum cohort differs",
    ),
    "more rounds": (lambda p: signed(p, p.order, rounds=3), "the number of rounds differs"),
    "round 0": (lambda p: signed(p, p.order, round=0), "there is no such round"),
    "round 3 of 2": (lambda p: signed(p, p.order, round=3), "there is no such round"),
    "a key nobody signed": (
        lambda p: dataclasses.replace(p.order, public_key=planned(p).public_key),
        "the public key is not the signed one",
    ),
    "another base model": (
        lambda p: sent(p, model="0" * 64),
        "the base model at this site is not the one that the run is for",
    ),
    "the base model held otherwise": (
        lambda p: configured(p, 'quantization = "none"', 'quantization = "int8"'),
        "the base model at this site is not the one that the run is for",
    ),
    "one label more": (
        lambda p: sent(p, labels=(*p.order.header.labels, "four")),
        "the adapter is not as long as this site's",
    ),
    "without this site": (
        lambda p: cohort(p, lambda members: members[1:]),
        "this site is not in the cohort",
    ),
    "what another site is told of the cohort": (
        lambda p: told(p, place=1),
        "a neighbourhood is another site's",
    ),
    "nothing of the cohort": (
        lambda p: told(p, near=()),
        "a neighbourhood names places that the cohort does not have",
    ),
    "a part of the cohort": (part_of_it, "a neighbourhood leaves out a part of its cohort"),
    "a digest too many": (
        lambda p: told(p, siblings=("00" * 32,)),
        "a neighbourhood does not lead to the digest of its cohort",
    ),
    "an entry nobody signed": (forged_entry, "a neighbourhood is not that of the cohort"),
    "drawn neighbours in a small cohort": (
        lambda p: signed(p, p.order, neighbours=1),
        "who shares masks with whom does not follow from the run's configuration",
    ),
    "sites in league that the configuration does not name": (
        lambda p: signed(p, p.order, colluders=1),
        "who shares masks with whom does not follow from the run's configuration",
    ),
    "as many neighbours as sites": (
        lambda p: signed(p, p.order, neighbours=3),
        "the numbers of neighbours in a round do not fit its cohort",
    ),
    "more missing neighbours than there are": (
        lambda p: signed(p, p.order, missing=1),
        "the numbers of neighbours in a round do not fit its cohort",
    ),
    "with its key under another ledger": (
        lambda p: cohort(p, lambda members: [own_entry(p, SITE, "0" * 64), *members[1:]]),
        "this site's entry in the cohort is not its own",
    ),
    "a cohort out of order": (
        lambda p: cohort(p, lambda members: members[::-1]),
        "the cohort repeats a site or is not in order",
    ),
    "a site twice": (
        lambda p: cohort(p, lambda members: [members[0], *members]),
        "the cohort repeats a site or is not in order",
    ),
    "one mask key twice": (
        lambda p: cohort(p, lambda members: swapped_key(p)),
        "two sites of the cohort show the same mask key",
    ),
    "a sum of more sites than there are": (
        lambda p: signed(p, p.order, min_sites=4),
        "a cohort of 3 sites cannot give a sum of 4",
    ),
    "a sum of none": (
        lambda p: signed(p, p.order, min_sites=0),
        "a cohort of 3 sites cannot give a sum of 0",
    ),
    "a mask key's signature that is no hexadecimal": (
        lambda p: cohort(p, lambda members: [{**members[0], "signature": "x"}, *members[1:]]),
        "the mask key of 'site-0' or its signature is not hexadecimal",
    ),
    "an authority's signature that is no hexadecimal": (
        lambda p: headed(p.order, signature="x"),
        "the key authority's signature is not hexadecimal",
    ),
}


@pytest.mark.parametrize("what", ORDERS)
def test_an_order_that_does_not_fit_is_refused_and_leaves_no_trace(place, what):
    make, words = ORDERS[what]
    ledger, memory = place.federation.folder / f"{SITE}.sqlite", place.site._files.memory
    before, known = ledger.read_bytes(), memory.read_bytes()
    answer = place.site.train(make(place))
    assert answer.header.refusal.message == words
    assert answer.update == b""
    assert ledger.read_bytes() == before
    assert memory.read_bytes() == known


def test_an_operators_minimum_is_named(place):
    reader: OrderReader = place.site._orders
    strict = dataclasses.replace(
        reader, roster=dataclasses.replace(place.federation.roster, min_cohort=3)
    )
    with pytest.raises(FedllmError) as caught:
        strict.order(place.order, place.federation.ledger_id(SITE))
    assert caught.value.message == "a sum of 2 sites could be opened; the minimum here is 3"


def later(order: Train) -> list[Wire]:
    """Return what else is asked about the round of an order."""
    header = order.header
    said = {"statement": header.statement, "signature": header.signature}
    about = SignedRound(**said)
    names = tuple(one.member.name for one in header.around.near)
    said |= {"survivors": names, "around": header.around}
    return [
        Draw(about),
        Ready(about),
        Settle(SettleHeader(**said), order.plan),
        Unmask(UnmaskHeader(**said, signatures={}), order.plan),
        Recover(RecoverHeader(**said, signatures={}, owners=names[1:]), order.plan),
    ]


def answers(site, order: Train) -> list[str]:
    asked = (getattr(site, type(one).__name__.lower())(one) for one in later(order))
    return [answer.header.refusal and answer.header.refusal.message for answer in asked]


def test_what_is_asked_after_an_order_meets_the_minimum_and_the_cohort_too(place, monkeypatch):
    """A coordinator may ask a site for its masks without ever having ordered anything."""
    without = cohort(place, lambda members: members[1:])
    assert answers(place.site, without) == ["this site is not in the cohort"] * 5
    draw, ready, settle, unmask, recover = answers(place.site, place.order)
    assert "every two sites of this cohort share a mask" in draw
    assert ready is None
    assert settle == unmask == recover
    assert "this site did not take part in this attempt of the round" in settle
    reader: OrderReader = place.site._orders
    for strict in (
        dataclasses.replace(reader, allow=reader.allow.model_copy(update={"min_cohort": 3})),
        dataclasses.replace(
            reader, roster=dataclasses.replace(place.federation.roster, min_cohort=3)
        ),
    ):
        monkeypatch.setattr(place.site, "_orders", strict)
        monkeypatch.setattr(place.site._sums, "_orders", strict)
        few = "a sum of 2 sites could be opened; the minimum here is 3"
        assert answers(place.site, place.order) == [few] * 5


def test_a_configuration_is_read_once_and_each_site_has_its_own_model_in_it(place):
    header, reader = place.order.header, place.site._orders

    def read(**changes):
        site = dataclasses.replace(reader, **changes)
        return site.configuration(header.config, header.model)

    first = read(model_path="here")
    assert read(model_path="here") is first
    assert (first.model.path, first.engine.device) == ("here", None)
    assert read(model_path="there").model.path == "there"
    assert read(model_path="here", device="cuda").engine.device == "cuda"


def test_the_order_itself_is_good(place):
    """Last: what the others were made of is carried out, and charged once."""
    assert place.site.train(place.order).update
    ledger = Ledger.open(
        place.federation.folder / f"{SITE}.sqlite", SITE, place.federation.identities[SITE]
    )
    assert len(ledger.events_of_run("run-1")) == 1
