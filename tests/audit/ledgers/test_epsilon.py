"""Recomputing epsilon from ledgers: right where fedllm is right, loud where a claim is wrong."""

from __future__ import annotations

import json
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.ledger import charge_before, register
from typer.testing import CliRunner

from fedllm.audit.ledgers.epsilon import audit_ledgers, find_ledgers
from fedllm.audit.ledgers.figures import EventGroup
from fedllm.audit.ledgers.recompute import Recomputed, recompute
from fedllm.commands.audit import app
from fedllm.errors import BudgetError, ConfigError
from fedllm.identity.keys import Identity
from fedllm.identity.roster import Roster
from fedllm.privacy.accounting import accountants as accounting
from fedllm.privacy.accounting.events import Gaussian, NonPrivate, PoissonGaussian
from fedllm.privacy.ledger.audit import export_ledger
from fedllm.privacy.ledger.budget import Ceiling, Charge
from fedllm.privacy.ledger.entries import TamperedError
from fedllm.privacy.ledger.ledger import Ledger

STEP = PoissonGaussian(0.1, 1.0, 10)
DELTA = 1e-5


class Book:
    """A ledger of one account."""

    def __init__(self, folder, name="site-a", unit=None):
        self.path = folder / f"{name}.sqlite"
        self.identity = Identity.generate(name)
        self.ledger = Ledger.open(self.path, name, self.identity)
        self.unit = "person" if unit else "record"

    def charge(self, *events, run="run-1", number=1, ceiling=math.inf, finish=True, alone=None):
        charge = Charge(run, number, "", events, alone, DELTA, unit=self.unit)
        reserved = self.ledger.reserve(charge, Ceiling(ceiling, DELTA))
        if finish:
            self.ledger.commit(reserved)


@pytest.fixture
def book(tmp_path):
    return Book(tmp_path)


def test_a_library_that_rounds_to_no_loss_at_all_is_not_believed():
    # 0.1% of the units were seen, with little noise: no delta of 1e-5 makes that nothing.
    found = recompute([PoissonGaussian(1e-9, 0.5, 10**6)], DELTA)
    assert found.rdp is None
    assert found.value > 0


def audit(*paths, **trusted):
    return audit_ledgers(find_ledgers(paths), **trusted)


def texts(found, severity):
    return [f"{f.subject}: {f.text}" for f in found.findings if f.severity == severity]


def test_three_accountants_agree_with_known_figures():
    # Published for sigma 1, q 0.1, 100 steps, delta 1e-5: 7.05 by PLD and PRV, 7.90 by RDP.
    found = recompute([STEP] * 10, DELTA)
    assert found.pld == pytest.approx(7.05, abs=0.02)
    assert found.prv == pytest.approx(7.05, abs=0.03)
    assert found.rdp == pytest.approx(7.90, abs=0.02)
    assert found.value == min(found.pld, found.prv)
    assert found.spread < 0.01


def test_recomputing_calls_nothing_of_fedllms_own_accountant(monkeypatch):
    for name in ("epsilon", "upper_bound", "quick_bound", "_estimate", "renyi_epsilon"):
        monkeypatch.setattr(accounting, name, lambda *a: pytest.fail("was called"))
    assert 0 < recompute([PoissonGaussian(0.2, 1.3, 7), Gaussian(4.0, 2)], DELTA).value < 5


def test_nothing_and_no_privacy_are_the_two_ends():
    assert recompute([], DELTA) == Recomputed(0.0, 0.0, 0.0)
    assert recompute([PoissonGaussian(0.0, 1.0, 9)], DELTA).value == 0.0
    assert recompute([STEP, NonPrivate()], DELTA).value == math.inf
    assert recompute([PoissonGaussian(0.1, 0.0, 1)], DELTA).value == math.inf


@settings(max_examples=4)
@given(
    rate=st.sampled_from([0.01, 0.2, 1.0]),
    noise=st.floats(0.8, 6.0),
    steps=st.integers(1, 100),
)
def test_fedllms_accountant_and_the_foreign_ones_agree(rate, noise, steps):
    events = [PoissonGaussian(rate, noise, steps)]
    mine, foreign = accounting.epsilon(events, DELTA).value, recompute(events, DELTA).value
    assert mine == pytest.approx(foreign, rel=0.02, abs=0.02)


def test_a_sound_ledger_has_no_critical_findings(book, tmp_path):
    for number in (1, 2):
        book.charge(STEP, number=number, ceiling=8.0)
    key = book.identity.public_bytes()
    found = audit(book.path, public_keys={"site-a": key}, anchors={"site-a": [book.ledger.head()]})
    assert found.findings == ()
    (ledger,) = found.ledgers
    (data,) = ledger.accounts
    (run,) = data.runs
    assert (data.account, data.unit, data.ceiling, data.delta) == ("", "record", 8.0, DELTA)
    assert (run.committed, run.reserved_only) == (2, 0)
    assert run.groups == (EventGroup("Poisson-sampled Gaussian", 0.1, 1.0, 20),)
    assert data.sums == run.recomputed == recompute([STEP, STEP], DELTA)
    assert data.claimed == pytest.approx(data.sums.value, rel=0.02)


def test_runs_are_added_up_for_the_account_and_each_stands_alone(book):
    book.charge(STEP, run="first")
    book.charge(PoissonGaussian(0.2, 2.0, 5), run="second")
    (data,) = audit(book.path).ledgers[0].accounts
    first, second = data.runs
    assert data.sums.value > max(first.recomputed.value, second.recomputed.value)
    assert second.recomputed == recompute([PoissonGaussian(0.2, 2.0, 5)], DELTA)


def test_ledgers_of_before_are_held_to_the_rule_of_their_time(book):
    """Parts of a data set could each be spent up to the ceiling."""
    alone = accounting.epsilon([STEP] * 2, DELTA).value
    ceiling, mine = Ceiling(alone, DELTA), {"signer": book.identity, "site": "site-a"}
    parts = [register(book.path, name, **mine) for name in "ab"]
    for number, part in enumerate(parts):
        charge_before(book.path, part, (STEP, STEP), ceiling, number, **mine)
    found = audit(book.path)
    (account,) = found.ledgers[0].accounts
    assert account.sums.value > 1.1 * alone
    assert not found.critical
    assert any("2 charges were made under the rule" in text for text in texts(found, "note"))
    whole = register(book.path, "a", "b", **mine)
    charge_before(book.path, whole, (STEP,), ceiling, 2, **mine)
    (text,) = texts(audit(book.path), "critical")
    assert f"data set {whole[:12]} was charged to epsilon" in text


def test_declared_accounts_are_audited_apart_and_said_to_be_the_sites_word(book):
    alone = Ceiling(accounting.epsilon([STEP] * 2, DELTA).value, DELTA)
    for number, account in enumerate(("", "oncology", "surgery")):
        book.ledger.reserve(Charge("run", number, account, (STEP,)), Ceiling(math.inf, DELTA))
    for account in ("oncology", "surgery"):
        with pytest.raises(BudgetError):
            book.ledger.reserve(Charge("run", 9, account, (STEP,)), alone)
    found = audit(book.path)
    everything, oncology, surgery = found.ledgers[0].accounts
    assert oncology.sums == surgery.sums == recompute([STEP] * 2, DELTA)
    assert everything.sums == recompute([STEP] * 3, DELTA)
    notes = texts(found, "note")
    for name in ("oncology", "surgery"):
        assert any(f"account '{name}'" in text and "site's word" in text for text in notes)


def test_an_account_above_its_ceiling_is_named(book, monkeypatch):
    from fedllm.privacy.ledger.budget import BudgetGuard

    monkeypatch.setattr(BudgetGuard, "require", lambda *a: None)
    book.ledger.reserve(Charge("run", 1, "oncology", (STEP,)), Ceiling(0.5, DELTA))
    (text,) = texts(audit(book.path), "critical")
    assert "account 'oncology' was charged to epsilon" in text


def test_a_ceiling_against_colluders_is_held_too(book):
    share = PoissonGaussian(STEP.sampling_rate, 0.5, STEP.steps)
    charge = Charge("run-1", 1, "", (STEP,), (share,), DELTA)
    limit = accounting.epsilon([share], DELTA).value / 2
    body = Ceiling(8.0, DELTA, limit)
    book.ledger._require = lambda *planned: None
    book.ledger.commit(book.ledger.reserve(charge, body))
    (text,) = texts(audit(book.path), "critical")
    assert "for everyone else colluding, above the site's ceiling" in text


def test_a_claim_that_is_too_small_is_critical(book, monkeypatch):
    book.charge(STEP)
    right = accounting.epsilon
    # The accounting with half the sampling rate, as a wrong program would have it.
    wrong = right([PoissonGaussian(0.05, 1.0, 10)], DELTA)
    monkeypatch.setattr(accounting, "epsilon", lambda events, delta: wrong)
    found = audit(book.path)
    assert any("accountant claims epsilon" in text for text in texts(found, "critical"))
    assert found.critical


def test_spending_above_the_ceiling_is_critical(book, monkeypatch):
    from fedllm.privacy.ledger.budget import BudgetGuard

    monkeypatch.setattr(BudgetGuard, "require", lambda *a: None)
    book.charge(STEP, ceiling=0.5)
    assert any(
        "above the site's ceiling 0.5" in text for text in texts(audit(book.path), "critical")
    )


def test_what_weakens_a_promise_is_said(book, tmp_path):
    book.charge(STEP, finish=False)
    book.charge(NonPrivate(), number=2)
    found = audit(book.path)
    assert any("without differential privacy" in text for text in texts(found, "warning"))
    notes = " ".join(texts(found, "note"))
    for words in ("released nothing", "--public-key site-a=HEX", "no anchor"):
        assert words in notes
    assert not found.critical


def test_colluders_see_more_and_it_is_computed(book):
    book.charge(STEP, alone=(PoissonGaussian(0.1, 0.5, 10),))
    (data,) = audit(book.path).ledgers[0].accounts
    assert data.colluders.value > 2 * data.sums.value


def test_tampering_is_a_critical_finding_and_other_ledgers_are_still_audited(book, tmp_path):
    book.charge(STEP)
    export = tmp_path / "site-a.jsonl"
    export_ledger(book.path, export)
    export.write_bytes(export.read_bytes().replace(b'"steps":10', b'"steps":1'))
    other = Book(tmp_path, "site-b")
    other.charge(STEP)
    found = audit(export, other.path)
    assert ["edited" in text for text in texts(found, "critical")] == [True]
    assert [ledger.site for ledger in found.ledgers] == ["", "site-b"]


def test_another_key_than_the_sites_is_critical(book):
    book.charge(STEP)
    key = Identity.generate("site-a").public_bytes()
    found = audit(book.path, public_keys={"site-a": key})
    assert found.critical


def test_a_run_folder_brings_its_own_claims(book, tmp_path):
    book.charge(STEP)
    folder = tmp_path / "run"
    (folder / "ledgers").mkdir(parents=True)
    export_ledger(book.path, folder / "ledgers" / "site-a.jsonl")

    def claim(value):
        summary = {"run_id": "run-1", "privacy": {"sites": {"site-a": value}}}
        (folder / "summary.json").write_text(json.dumps(summary))
        return audit(folder)

    spent = recompute([STEP], DELTA).value
    assert not claim(spent).critical
    found = claim(spent / 2)
    assert any("the run's summary claims" in text for text in texts(found, "critical"))
    assert any("more than the" in text for text in texts(claim(spent * 2), "note"))


@pytest.fixture
def run_folder(book, tmp_path):
    """A run folder with one ledger that was charged, without a summary."""
    book.charge(STEP)
    folder = tmp_path / "run"
    (folder / "ledgers").mkdir(parents=True)
    export_ledger(book.path, folder / "ledgers" / "site-a.jsonl")
    return folder


@pytest.mark.parametrize(
    ("summary", "says"),
    [
        (b"{", "is not valid JSON"),
        (b"\xff", "UTF-8"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[]", "is not a JSON object"),
        (b"{}", "'run_id'"),
        (b'{"run_id": "run-1", "privacy": 3}', "'privacy.sites'"),
        (b'{"run_id": "run-1", "privacy": {}}', "'privacy.sites'"),
        (b'{"run_id": "run-1", "privacy": {"sites": {"site-a": "1"}}}', "'privacy.sites.site-a'"),
    ],
)
def test_a_claim_that_cannot_be_compared_is_a_finding(run_folder, summary, says):
    (run_folder / "summary.json").write_bytes(summary)
    found = audit(run_folder)
    assert found.critical
    (finding,) = [f for f in found.findings if f.severity == "critical"]
    assert finding.subject == str(run_folder / "summary.json")
    assert says in finding.text


def test_a_claim_without_a_bound_where_one_was_kept_is_a_finding(run_folder):
    summary = {"run_id": "run-1", "privacy": {"sites": {"site-a": None}}}
    (run_folder / "summary.json").write_text(json.dumps(summary))
    found = audit(run_folder)
    assert found.critical
    assert any("claims no bound where" in text for text in texts(found, "critical"))


def test_a_site_that_a_summary_leaves_out_is_a_finding(run_folder):
    summary = {"run_id": "run-1", "privacy": {"sites": {"site-b": 1.0}}}
    (run_folder / "summary.json").write_text(json.dumps(summary))
    assert any("nothing of this one" in text for text in texts(audit(run_folder), "warning"))


def test_what_a_coordinator_keeps_is_no_ledger(book, tmp_path):
    folder = tmp_path / "deployed"
    folder.mkdir()
    for name in ("metrics.jsonl", "progress.jsonl", "ledger_heads.jsonl"):
        (folder / name).write_text('{"kind": "note", "text": "x"}\n')
    with pytest.raises(ConfigError, match="holds no ledgers"):
        find_ledgers([folder])
    book.charge(STEP)
    export_ledger(book.path, folder / "site-a.jsonl")
    (folder / "ledger_heads.jsonl").unlink()
    assert not audit(folder).critical


def test_paths_without_ledgers_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="there is no"):
        find_ledgers([tmp_path / "nothing"])
    with pytest.raises(ConfigError, match="holds no ledgers"):
        find_ledgers([tmp_path])


def test_command_prints_tables_json_and_exit_codes(book, tmp_path):
    book.charge(STEP, ceiling=8.0)
    run = CliRunner().invoke
    text = run(app, ["epsilon", str(book.path)])
    assert text.exit_code == 0
    assert "10 steps" in text.stdout.replace("\n", " ")
    assert "What this rests on" in text.stdout
    head = book.ledger.head()
    options = ["--public-key", f"site-a={book.identity.public_bytes().hex()}"]
    options += ["--anchor", f"site-a={head}"]
    found = json.loads(run(app, ["epsilon", str(book.path), "--json", *options]).stdout)
    (data,) = found["ledgers"][0]["accounts"]
    assert data["others_see_sums"]["pld"] == pytest.approx(data["claimed"], rel=0.02)
    assert found["findings"] == []
    assert len(found["assumptions"]) >= 5
    book.charge(NonPrivate(), number=2)
    found = json.loads(run(app, ["epsilon", str(book.path), "--json"]).stdout)
    assert found["ledgers"][0]["accounts"][0]["claimed"] == "unlimited"
    cut = run(app, ["epsilon", str(book.path), "--anchor", "site-a=99:" + "0" * 64])
    assert isinstance(cut.exception, TamperedError)
    assert cut.exception.exit_code == 4
    wrong = run(app, ["epsilon", str(book.path), "--public-key", "abc"])
    assert isinstance(wrong.exception, ConfigError)


def test_text_among_ledgers_is_a_finding_and_alone_a_mistake(book, tmp_path):
    book.charge(STEP)
    exchanged = tmp_path / "site-b.sqlite"
    exchanged.write_text("site,epsilon\nb,3\n")
    assert texts(audit(tmp_path), "critical") == [f"{exchanged}: {exchanged} is not a ledger"]
    with pytest.raises(ConfigError, match="is not a ledger"):
        audit(exchanged)


def test_the_audit_names_runs_as_people_do(book):
    charge = Charge("f00d", 1, "", (STEP,), name="bank-\x1b[31mintents")
    book.ledger.reserve(charge, Ceiling(math.inf, DELTA))
    done = CliRunner().invoke(app, ["epsilon", str(book.path)], env={"COLUMNS": "200"})
    assert r"bank-\x1b[31mintents" in done.stdout
    found = json.loads(CliRunner().invoke(app, ["epsilon", str(book.path), "--json"]).stdout)
    assert found["ledgers"][0]["accounts"][0]["runs"][0]["name"] == "bank-\x1b[31mintents"


def test_the_table_says_how_to_read_three_accountants_and_a_dash(book, tmp_path):
    book.charge(STEP)
    shown = CliRunner().invoke(app, ["epsilon", str(book.path)], env={"COLUMNS": "200"}).output
    assert "the smallest of a row counts" in shown
    assert "A dash" not in shown
    # So little noise that only Rényi DP has an answer.
    book.charge(PoissonGaussian(0.1, 0.2, 1), number=2)
    shown = CliRunner().invoke(app, ["epsilon", str(book.path)], env={"COLUMNS": "200"}).output
    assert "A dash: that accountant has no answer" in shown


def test_the_table_and_what_it_rests_on_speak_of_the_same_observers(book):
    book.charge(STEP)
    shown = CliRunner().invoke(app, ["epsilon", str(book.path)], env={"COLUMNS": "250"}).output
    table, rests = shown.split("What this rests on")
    quoted = re.findall(r"- '([^']+)'", rests)
    assert len(quoted) == 2
    assert all(f"all runs, {words}" in table for words in quoted), quoted


def test_a_site_is_shown_by_title_and_name_and_machines_get_both(book, tmp_path):
    book.charge(STEP)
    roster = Roster(b"a" * 32, {}, titles={"site-a": "Südklinik"})
    (tmp_path / "roster.json").write_text(roster.to_json())
    shown = CliRunner().invoke(app, ["epsilon", str(book.path)], env={"COLUMNS": "200"}).output
    assert "Südklinik (site-a)" in shown
    assert "note Südklinik (site-a): signatures" in shown
    said = json.loads(CliRunner().invoke(app, ["epsilon", str(book.path), "--json"]).output)
    assert (said["ledgers"][0]["site"], said["ledgers"][0]["title"]) == ("site-a", "Südklinik")
    assert said["ledgers"][0]["accounts"][0]["runs"][0]["rounds_released"] == 1
