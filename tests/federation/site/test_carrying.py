"""A site that lost its keys or its ledger: what was spent before stays spent."""

from __future__ import annotations

import dataclasses
import math
import shutil

import pytest
from support.federation import build, small_config

from fedllm.config import AllowSection, BudgetSection, SitePolicy
from fedllm.errors import BudgetError, PeerError, RefusedError
from fedllm.federation.site.carrying import (
    Statement,
    carry_ledger,
    carry_statement,
    require_carried,
)
from fedllm.federation.site.files import SiteFiles
from fedllm.federation.site.memory import SiteMemory
from fedllm.identity.keys import Identity
from fedllm.identity.roster import Roster
from fedllm.privacy.accounting.accountants import epsilon
from fedllm.privacy.accounting.events import Gaussian, NonPrivate, PoissonGaussian, Stated
from fedllm.privacy.ledger.audit import export_ledger, read_state, spending_of, verify_ledger
from fedllm.privacy.ledger.budget import Ceiling, Charge
from fedllm.privacy.ledger.charges import Carried
from fedllm.privacy.ledger.ledger import Ledger

CEILING = Ceiling(8.0, 1e-5)
STATED = Statement(3.0, 1e-6, math.inf, "record")
SPENT = (PoissonGaussian(0.05, 2.0, 100), Gaussian(3.0))


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


class Place:
    """Anne before and after she lost her keys."""

    def __init__(self, folder) -> None:
        self.folder = folder
        self.old, self.new = Identity.generate("anne"), Identity.generate("anne")
        self.roster = Roster(
            b"a" * 32,
            {"anne": self.new.public_bytes()},
            revoked=(self.old.public_bytes(),),
            former={"anne": (self.old.public_bytes(),)},
        )
        self.before, self.after = folder / "old.sqlite", folder / "new.sqlite"
        self.files = self.beside(self.after)

    def beside(self, ledger):
        return SiteFiles(ledger, self.folder / "memory.json", self.folder / "rounds.jsonl")

    def spend(self, path, identity, events=SPENT, unit="record", run="r"):
        ledger = Ledger.open(path, "anne", identity)
        for number, event in enumerate(events):
            ledger.reserve(Charge(run, number, "", (event,), unit=unit), CEILING)
        return ledger

    def require(self, identity=None) -> None:
        require_carried(self.files, identity or self.new, self.roster)


def test_a_site_with_earlier_keys_owes_what_they_spent(place):
    with pytest.raises(RefusedError, match="had other keys before") as caught:
        place.require()
    assert "carry-over" in caught.value.remedy
    place.spend(place.after, place.new, ())
    with pytest.raises(RefusedError, match="had other keys before"):
        place.require()
    place.spend(place.before, place.old)
    carry_ledger(place.before, place.files, place.new, place.roster)
    place.require()
    assert verify_ledger(place.after, place.new.public_bytes())


@pytest.mark.parametrize("through", ["ledger", "export"])
def test_the_earlier_spending_counts_exactly(place, through):
    place.spend(place.before, place.old)
    old = place.before
    if through == "export":
        old = place.folder / "old.jsonl"
        export_ledger(place.before, old)
    carry_ledger(old, place.files, place.new, place.roster)
    ledger = place.spend(place.after, place.new, ())
    assert sorted(map(repr, ledger.events(""))) == sorted(map(repr, SPENT))
    both = epsilon([*SPENT, Gaussian(1.5)], CEILING.delta).value
    assert both < CEILING.epsilon
    ledger.reserve(Charge("s", 1, "", (Gaussian(1.5),)), CEILING)
    (report,) = verify_ledger(place.after).accounts
    assert report.spent.value == pytest.approx(both, rel=1e-6)
    with pytest.raises(BudgetError):
        ledger.reserve(Charge("s", 2, "", (Gaussian(0.5),)), CEILING)


def test_another_unit_counts_as_not_private(place):
    place.spend(place.before, place.old)
    carry_ledger(place.before, place.files, place.new, place.roster)
    ledger = Ledger.open(place.after, "anne", place.new)
    assert NonPrivate() in ledger.events("", unit="person")
    with pytest.raises(BudgetError, match="bounds nothing for a person"):
        place.spend(place.after, place.new, unit="person", run="s")


def test_two_losses_in_a_row_add_up(place):
    third = Identity.generate("anne")
    place.spend(place.before, place.old)
    carry_ledger(place.before, place.files, place.new, place.roster)
    place.spend(place.after, place.new, (Gaussian(3.0),), run="s")
    keys = (place.old.public_bytes(), place.new.public_bytes())
    roster = dataclasses.replace(place.roster, revoked=keys, former={"anne": keys})
    last = place.folder / "third.sqlite"
    carry_ledger(place.after, place.beside(last), third, roster)
    require_carried(place.beside(last), third, roster)
    ledger = place.spend(last, third, ())
    assert len(ledger.events("")) == len(SPENT) + 1
    for run in ("r", "s"):
        with pytest.raises(RefusedError, match="begun under this site's earlier ledger"):
            place.spend(last, third, (Gaussian(100.0),), run=run)


def test_an_earlier_ledger_without_spending_is_covered(place):
    Ledger.open(place.before, "anne", place.old)
    carry_ledger(place.before, place.files, place.new, place.roster)
    place.require()


def test_the_keys_that_are_covered_stand_in_one_order(place):
    """So that two who state the same sign the same."""
    keys = tuple(Identity.generate("anne").public_bytes() for _ in range(8))
    roster = dataclasses.replace(place.roster, revoked=keys, former={"anne": keys})
    (carried,) = carry_statement(STATED, place.files, place.new, roster)
    assert carried.covers == tuple(sorted(key.hex() for key in keys))
    _, (again,) = spending_of(place.after)
    assert again.covers == tuple(sorted([*carried.covers, place.new.public_bytes().hex()]))


def test_neither_twice_nor_anothers(place):
    place.spend(place.before, place.old)
    carry_ledger(place.before, place.files, place.new, place.roster)
    with pytest.raises(RefusedError, match="taken over before") as refused:
        carry_ledger(place.before, place.files, place.new, place.roster)
    assert refused.value.remedy == "nothing has to be done: it counts"
    stranger = place.folder / "eve.sqlite"
    place.spend(stranger, Identity.generate("anne"))
    with pytest.raises(RefusedError, match="not an earlier ledger of 'anne'"):
        carry_ledger(stranger, place.files, place.new, place.roster)


def test_a_ledger_by_another_key_is_not_the_sites_whatever_it_says_of_itself(place):
    """Whoever hands over a lost export could leave out what was spent."""
    eve = Identity.generate("anne")
    forged = place.folder / "forged.sqlite"
    covers = (place.old.public_bytes().hex(),)
    Ledger.open(forged, "anne", eve).carry([Carried(covers, "", "record", (), ())])
    with pytest.raises(RefusedError, match="not an earlier ledger of 'anne'"):
        carry_ledger(forged, place.files, place.new, place.roster)
    assert not place.after.exists()


def test_a_changed_ledger_is_not_taken_over(place):
    place.spend(place.before, place.old)
    export = place.folder / "old.jsonl"
    export_ledger(place.before, export)
    export.write_text(export.read_text().replace('"steps":100', '"steps":2'))
    with pytest.raises(PeerError):
        carry_ledger(export, place.files, place.new, place.roster)
    assert not place.after.exists()


class Restored(Place):
    """Anne, whose keys are the same, after her disk was restored from a copy."""

    def __init__(self, folder, spent_at_the_copy=()) -> None:
        super().__init__(folder)
        self.old = self.new
        self.roster = Roster(b"a" * 32, {"anne": self.new.public_bytes()})
        self.copy, self.newest = folder / "copy.jsonl", folder / "newest.jsonl"
        self.spend(self.after, self.new, spent_at_the_copy)
        export_ledger(self.after, self.copy)
        shutil.copy(self.after, self.before)
        ledger = self.spend(self.after, self.new, run="s")
        SiteMemory(self.files.memory).remember(ledger.head())
        export_ledger(self.after, self.newest)
        self.whole = ledger.events("")


@pytest.mark.parametrize("spent", [(), SPENT[:1]])
@pytest.mark.parametrize("what", ["itself", "copy", "newest", "stated"])
def test_nothing_is_taken_over_into_an_older_copy(tmp_path, spent, what):
    """It would be gone on with, and carry out again what it forgot, under the same masks."""
    place = Restored(tmp_path, spent)
    shutil.copy(place.before, place.after)
    memory = place.files.memory.read_text()
    given = {"itself": place.after, "copy": place.copy, "newest": place.newest}
    with pytest.raises(
        RefusedError, match=r"not the ledger that this site remembers|lies at the site's place"
    ) as refused:
        if what == "stated":
            carry_statement(STATED, place.files, place.new, place.roster)
        else:
            carry_ledger(given[what], place.files, place.new, place.roster)
    assert "away" in refused.value.remedy
    assert place.files.memory.read_text() == memory
    with pytest.raises(PeerError):
        place.require()


def test_an_older_copy_gives_nothing_back(tmp_path):
    place = Restored(tmp_path, SPENT[:1])
    place.after.unlink()
    with pytest.raises(RefusedError, match="lacks entry 4, which the site remembers"):
        carry_ledger(place.copy, place.files, place.new, place.roster)
    assert not place.after.exists()
    carry_ledger(place.newest, place.files, place.new, place.roster)
    place.require()
    assert Ledger.open(place.after, "anne", place.new).events("") == place.whole


def test_heads_of_the_ledger_that_was_taken_over_are_told_from_none(tmp_path):
    place = Restored(tmp_path, SPENT[:1])
    kept = [read_state(place.newest).head, read_state(place.copy).head]
    place.after.unlink()
    carry_ledger(place.newest, place.files, place.new, place.roster)
    for head in kept:
        with pytest.raises(PeerError, match="or it is of an earlier ledger") as refused:
            verify_ledger(place.after, place.new.public_bytes(), [head])
        assert f"ended with entry {kept[0].sequence}" in refused.value.remedy
    verify_ledger(place.newest, place.new.public_bytes(), kept)
    verify_ledger(place.after, place.new.public_bytes(), [read_state(place.after).head])


def test_what_an_older_copy_lacks_can_be_stated(tmp_path):
    place = Restored(tmp_path, SPENT[:1])
    place.after.unlink()
    carry_ledger(place.copy, place.files, place.new, place.roster, STATED)
    place.require()
    ledger = Ledger.open(place.after, "anne", place.new)
    assert ledger.events("") == [SPENT[0], Stated(3.0, 1e-6)]
    assert math.isinf(ledger.spent("", 1e-5, "colluders").value)


@pytest.mark.parametrize("after", ["carry", "open"])
def test_a_carry_over_that_was_cut_off_is_finished_by_the_same_command(
    tmp_path, monkeypatch, after
):
    place = Restored(tmp_path)
    place.after.unlink()

    def killed(*_):
        raise KeyboardInterrupt

    broken = (SiteMemory, "begin_anew") if after == "carry" else (Ledger, "carry")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(*broken, killed)
        carry_ledger(place.newest, place.files, place.new, place.roster)
    with pytest.raises(PeerError):
        place.require()
    carry_ledger(place.newest, place.files, place.new, place.roster)
    place.require()
    assert Ledger.open(place.after, "anne", place.new).events("") == place.whole


def test_a_run_of_an_earlier_ledger_has_ended(place):
    """What it promised and spent so far, the new ledger does not know."""
    place.spend(place.before, place.old)
    carry_ledger(place.before, place.files, place.new, place.roster)
    ledger = Ledger.open(place.after, "anne", place.new)
    with pytest.raises(RefusedError, match="ended with it"):
        ledger.require_config("r", "")
    with pytest.raises(RefusedError, match="ended with it"):
        ledger.reserve(Charge("r", 9, "", (Gaussian(100.0),)), CEILING)
    ledger.require_config("s", "")


def test_a_statement_adds_up_with_what_comes(place):
    carry_statement(STATED, place.files, place.new, place.roster)
    place.require()
    ledger = place.spend(place.after, place.new, ())
    more = Gaussian(2.0)
    alone = epsilon([more], 1e-5 - 1e-6).value
    assert epsilon([Stated(3.0, 1e-6), more], 1e-5).value == pytest.approx(3.0 + alone)
    ledger.reserve(Charge("s", 1, "", (more,)), CEILING)
    with pytest.raises(BudgetError):
        ledger.reserve(Charge("s", 2, "", (Gaussian(0.6),)), CEILING)
    (report,) = verify_ledger(place.after, place.new.public_bytes()).accounts
    assert math.isfinite(report.spent.value)
    assert math.isinf(report.spent_against_colluders.value), "nobody stated a limit"


def test_the_same_statement_is_charged_once(place):
    """Whoever is unsure whether it worked repeats the command."""
    carry_statement(STATED, place.files, place.new, place.roster)
    with pytest.raises(RefusedError, match="the same was stated before"):
        carry_statement(STATED, place.files, place.new, place.roster)
    more = dataclasses.replace(STATED, epsilon=0.5)
    carry_statement(more, place.files, place.new, place.roster)
    ledger = Ledger.open(place.after, "anne", place.new)
    assert ledger.events("") == [Stated(3.0, 1e-6), Stated(0.5, 1e-6)]


@pytest.mark.parametrize("stated", [(3.0, 1e-5), (math.inf, 0.0)])
def test_a_statement_that_leaves_no_delta_or_knows_nothing_ends_the_spending(place, stated):
    carry_statement(Statement(*stated, math.inf, "record"), place.files, place.new, place.roster)
    ledger = place.spend(place.after, place.new, ())
    with pytest.raises(BudgetError):
        ledger.reserve(Charge("s", 1, "", (Gaussian(100.0),)), CEILING)


def test_a_site_whose_ledger_is_gone_does_not_begin_a_new_one(tiny_checkpoint, tmp_path):
    """Somebody removes the ledger, to get a fresh budget."""
    policy = SitePolicy(budget=BudgetSection(epsilon=2.05), allow=AllowSection(min_cohort=1))
    config = small_config(tiny_checkpoint("bert"), privacy={"epsilon": 2.0})
    federation = build(tmp_path, config, policy=policy)
    federation.round()
    for name in federation.sites:
        (tmp_path / f"{name}.sqlite").rename(tmp_path / f"{name}.saved")
    again = build_again(federation, tmp_path, policy)
    with pytest.raises(RefusedError, match="its ledger is gone"):
        again.round(2, 2)
    assert not (tmp_path / "site-0.sqlite").exists()
    for name in federation.sites:
        identity = federation.identities[name]
        files = again.sites[name]._files
        carry_ledger(tmp_path / f"{name}.saved", files, identity, federation.roster)
    with pytest.raises(BudgetError):
        build_again(federation, tmp_path, policy, run="run-2").round()


def build_again(federation, folder, policy, run="run-1"):
    """The same sites, started anew."""
    from fedllm.federation.site.files import SiteFiles
    from fedllm.federation.site.site import Site

    rows = {name: site._data.records("classification") for name, site in federation.sites.items()}
    sites = {
        name: Site(
            identity=federation.identities[name],
            roster=federation.roster,
            policy=policy,
            files=SiteFiles(
                folder / f"{name}.sqlite", folder / f"{name}.json", folder / f"{name}.log"
            ),
            model_path=federation.config.model.path,
            records=lambda task, name=name: rows[name],
            models=federation.models,
            full_errors=True,
        )
        for name in federation.sites
    }
    terms = dataclasses.replace(federation.terms, run=run)
    return dataclasses.replace(federation, sites=sites, terms=terms)


def test_a_site_is_started_without_waiting_for_torch():
    """The supervising process asks this before it starts the one that trains."""
    import subprocess
    import sys

    modules = "fedllm.federation.site.carrying, fedllm.federation.site.files"
    check = f"import sys, {modules}; sys.exit('torch' in sys.modules or 'flwr' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
