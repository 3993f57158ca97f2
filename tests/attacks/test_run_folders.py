"""What somebody can do to a finished run's folder, and what the audit of its ledgers says."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
from support.run_folder import run_config, write_run
from typer.testing import CliRunner

from fedllm.audit.attacks.results import EpsilonResult, load
from fedllm.audit.ledgers.epsilon import audit_ledgers, find_ledgers
from fedllm.audit.report.page import write_report
from fedllm.commands.audit import app
from fedllm.config import to_toml
from fedllm.errors import ConfigError
from fedllm.identity.keys import Identity
from fedllm.privacy.accounting.accountants import epsilon
from fedllm.privacy.accounting.events import PoissonGaussian
from fedllm.privacy.ledger.audit import export_ledger
from fedllm.privacy.ledger.budget import Ceiling, Charge
from fedllm.privacy.ledger.heads import keep_heads
from fedllm.privacy.ledger.ledger import Ledger
from fedllm.runs.checkpoints import RunState, save_checkpoint
from fedllm.runs.folder import config_digest

RUN, DELTA, SITES = "f00d", 1e-5, ("site-01", "site-02", "site-03")
STEP, ALONE = PoissonGaussian(0.1, 1.0, 10), PoissonGaussian(0.1, 0.5, 10)
ROUNDS = 2
SPENT = epsilon([STEP] * ROUNDS, DELTA).value
COLLUDERS = epsilon([ALONE] * ROUNDS, DELTA).value
CONFIG = run_config(
    rounds={"count": ROUNDS}, privacy={"epsilon": 4.0}, data={"unit": None}, name="small"
)


def charge(path, site, run=RUN, identity=None, rounds=ROUNDS):
    ledger = Ledger.open(path, site, identity or Identity.generate(site))
    for number in range(1, rounds + 1):
        body = Charge(run, number, "", (STEP,), (ALONE,), DELTA)
        ledger.commit(ledger.reserve(body, Ceiling(math.inf, DELTA)))
    return ledger


def figures(**privacy):
    said = {
        "epsilon": SPENT,
        "promised": 4.0,
        "delta": DELTA,
        "unit": "record",
        "noise": "local",
        "sites": dict.fromkeys(SITES, SPENT),
        "colluders_epsilon": COLLUDERS,
    }
    return {
        "run": "small",
        "run_id": RUN,
        "task": "classification",
        "rounds": ROUNDS,
        "sites": len(SITES),
        "site_names": list(SITES),
        "privacy": {**said, **privacy},
        "encryption": {"scheme": "bfv", "masks": True, "bits": 16},
        "simulated": True,
    }


def line(number):
    spent = epsilon([STEP] * number, DELTA).value if number else 0.0
    return {"round": number, "sites": 3, "epsilon": dict.fromkeys(SITES, spent)}


@pytest.fixture
def run(finished, tmp_path):
    """A finished run with three sites, to be changed."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The run as it was left."""
    folder = write_run(
        tmp_path_factory.mktemp("finished") / "run",
        CONFIG,
        figures(),
        [line(number) for number in range(ROUNDS + 1)],
    )
    (folder / "ledgers").mkdir()
    heads = {s: charge(folder / "ledgers" / f"{s}.sqlite", s).head() for s in SITES}
    keep_heads(folder / "ledger_heads.jsonl", RUN, ROUNDS, heads)
    save_checkpoint(
        folder / "checkpoints",
        RunState(RUN, ROUNDS, (), config_digest(CONFIG), np.zeros(2, np.float32)),
    )
    return folder


def ledger(run, site):
    return run / "ledgers" / f"{site}.sqlite"


def critical(*paths):
    found = audit_ledgers(find_ledgers(paths))
    return [f"{f.subject}: {f.text}" for f in found.findings if f.severity == "critical"]


def warnings(*paths):
    found = audit_ledgers(find_ledgers(paths))
    return [f"{f.subject}: {f.text}" for f in found.findings if f.severity == "warning"]


def rewrite(run, **privacy):
    (run / "summary.json").write_text(json.dumps(figures(**privacy)))


def ask(run, **changes):
    values = CONFIG.model_dump(exclude_none=True)
    for section, change in changes.items():
        values[section] |= change
    (run / "run.toml").write_text(to_toml(type(CONFIG).model_validate(values)))


def test_an_untouched_folder_bears_out_what_it_claims(run):
    assert critical(run) == warnings(run) == []


# Ledgers that are not there, and ledgers that are another's.


def test_a_ledger_that_is_missing_is_critical(run):
    ledger(run, "site-01").unlink()
    (text,) = critical(run)
    assert text.startswith("site-01: its ledger is not among those of")
    assert "summary.json and ledger_heads.jsonl tell of it" in text
    done = CliRunner().invoke(app, ["epsilon", str(run)])
    assert done.exception.exit_code == 4


@pytest.mark.parametrize("kept", ["summary.json", "ledger_heads.jsonl"])
def test_one_of_both_is_enough_to_miss_a_ledger(run, kept):
    ledger(run, "site-01").unlink()
    if kept == "summary.json":
        (run / "ledger_heads.jsonl").unlink()
    else:
        rewrite(run, sites={site: SPENT for site in SITES if site != "site-01"})
    (text,) = critical(run)
    assert kept in text


def test_a_ledger_exchanged_for_another_sites_is_critical(run):
    shutil.copy(ledger(run, "site-02"), ledger(run, "site-01"))
    texts = critical(run)
    assert any("it is the ledger of site site-02: a ledger of site-01 should" in t for t in texts)
    assert any("a second time" in text for text in texts)
    assert any(text.startswith("site-01: its ledger is not among") for text in texts)
    # And where the folder of ledgers is given itself, or all that is in it.
    for paths in ([run / "ledgers"], sorted((run / "ledgers").glob("*.sqlite"))):
        texts = critical(*paths)
        assert any("should stand here" in text for text in texts)
        assert any("a second time" in text for text in texts)


def test_a_ledger_of_another_run_bears_out_nothing(run):
    """Without heads: begun anew under the same name, and charged for something else."""
    (run / "ledger_heads.jsonl").unlink()
    ledger(run, "site-01").unlink()
    charge(ledger(run, "site-01"), "site-01", run="other")
    (text,) = critical(run)
    assert text.startswith(f"site-01, run {RUN}: summary.json says that it spent")
    assert "holds no charge of the run" in text


def test_an_export_beside_its_ledger_is_the_same_ledger(run):
    export_ledger(ledger(run, "site-01"), run / "ledgers" / "site-01.jsonl")
    assert critical(run) == []


def test_two_ledgers_with_one_key_that_contradict_each_other_are_critical(tmp_path):
    key, other = Identity.generate("site-01"), tmp_path / "other"
    other.mkdir()
    charge(tmp_path / "site-01.sqlite", "site-01", identity=key, rounds=1)
    shutil.copy(tmp_path / "site-01.sqlite", other / "copy.sqlite")
    for path, name in ((tmp_path / "site-01.sqlite", "one"), (other / "copy.sqlite", "two")):
        charge(path, "site-01", run=name, identity=key)
    (text,) = critical(tmp_path / "site-01.sqlite", other / "copy.sqlite")
    assert "contradict each other" in text


def test_ledgers_of_one_name_with_two_keys_are_no_two_runs_of_one_site(tmp_path):
    one, two = tmp_path / "a.sqlite", tmp_path / "b.sqlite"
    charge(one, "site-01"), charge(two, "site-01")
    # Given one by one they may be of two simulations.
    assert critical(one, two) == []
    assert any("two keys" in text for text in warnings(one, two))
    assert any("two keys" in text for text in critical(tmp_path))


def test_ledgers_one_by_one_may_have_any_name_and_come_twice(run, tmp_path):
    mine = shutil.copy(ledger(run, "site-01"), tmp_path / "ledger.sqlite")
    assert critical(mine, ledger(run, "site-02")) == critical(mine, mine) == []
    assert critical(mine, ledger(run, "site-01")) == []


def test_a_run_is_compared_with_ledgers_that_it_shares_with_others(run, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    shutil.move(run / "ledgers", home / "ledgers")
    with pytest.raises(ConfigError, match="holds no ledgers") as refused:
        find_ledgers([run])
    assert "give the ledgers of its sites besides" in refused.value.remedy
    assert critical(home) == critical(run, home) == critical(run, home / "ledgers") == []
    one_by_one = sorted((home / "ledgers").glob("*.sqlite"))
    assert critical(run, *one_by_one) == []
    (text,) = critical(run, *one_by_one[1:])
    assert text.startswith("site-01: its ledger is not among those of")
    rewrite(run, sites=dict.fromkeys(SITES, SPENT / 2))
    assert len(critical(run, home)) == 3
    # What is found is kept where it belongs.
    CliRunner().invoke(app, ["epsilon", str(run), str(home)])
    kept = load(run, "epsilon", EpsilonResult)
    assert kept is not None
    assert kept.critical == 3


def test_two_simulations_may_have_sites_of_one_name(run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    shutil.rmtree(other / "ledgers")
    (other / "ledgers").mkdir()
    (other / "ledger_heads.jsonl").unlink()
    for site in SITES:
        charge(other / "ledgers" / f"{site}.sqlite", site)
    assert critical(run, other) == []


# Figures of the summary.


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"epsilon": SPENT / 2}, "'privacy.epsilon' claims epsilon"),
        ({"epsilon": None}, "'privacy.epsilon' claims no bound"),
        ({"epsilon": "1"}, "'privacy.epsilon' is no epsilon"),
        ({"colluders_epsilon": COLLUDERS / 2}, "'privacy.colluders_epsilon' claims epsilon"),
        ({"delta": 1e-9}, "'privacy.delta' is 1e-09; the ledgers were charged at 1e-05"),
        ({"unit": "person"}, "'privacy.unit' is person; ledgers were charged"),
        ({"promised": 1.0}, "summary.json says that 1 was asked for"),
        ({"promised": 1.0}, "privacy.promised of summary.json says 1.0"),
    ],
)
def test_a_changed_figure_of_the_summary_is_critical(run, changed, says):
    rewrite(run, **changed)
    assert any(says in text for text in critical(run)), critical(run)


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_changed_number_of_rounds_is_critical(run, rounds):
    (run / "summary.json").write_text(json.dumps({**figures(), "rounds": rounds}))
    assert any("the last round that the ledgers were charged for is 2" in t for t in critical(run))


def test_changed_figures_of_the_rounds_are_critical(run):
    """The report draws its curves and its largest epsilon from them."""
    lines = [line(0), {**line(2), "epsilon": dict.fromkeys(SITES, 0.5)}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    assert sum("metrics.jsonl claims epsilon 0.5" in text for text in critical(run)) == 3
    (run / "metrics.jsonl").write_text("{}\n")
    assert any("metrics.jsonl" in text for text in critical(run))


# What was asked for.


def test_a_changed_epsilon_of_run_toml_is_named(run):
    ask(run, privacy={"epsilon": 1.0})
    texts = critical(run)
    said = "privacy.epsilon is 1.0, privacy.promised of summary.json says 4.0"
    assert any("run.toml" in text and said in text for text in texts)
    assert sum("run.toml says that 1 was asked for" in text for text in texts) == 3


def test_a_key_that_no_summary_repeats_is_known_by_the_checkpoints(run):
    ask(run, privacy={"clipping_norm": 0.7})
    (text,) = critical(run)
    assert "its SHA-256 is not the one that the run's checkpoints name" in text
    before = sorted(path.name for path in run.rglob("*"))
    shutil.rmtree(run / "checkpoints" / "round-00002")
    assert critical(run) == []
    assert set(before) - {path.name for path in run.rglob("*")} <= {
        "round-00002",
        "state.json",
        "state.npz",
    }


def test_a_claim_that_only_a_loose_bound_contradicts_is_not_refuted(tmp_path):
    """So little noise that the numerical accountants have no answer, as colluders often see."""
    path, little = tmp_path / "site-01.sqlite", PoissonGaussian(0.04, 0.14, 2)
    book = Ledger.open(path, "site-01", Identity.generate("site-01"))
    book.reserve(Charge(RUN, 1, "", (little,), None, DELTA), Ceiling(70.0, DELTA))
    assert critical(path) == []
    found = audit_ledgers(find_ledgers([path])).findings
    assert any("neither confirms nor refutes" in finding.text for finding in found)


# Audits that are of something else than lies there now.


def findings(run, language="en"):
    write_report(run, language)
    said = json.loads((run / "report.json").read_text())
    return [(finding["severity"], finding["text"]) for finding in said["findings"]], said


def audited(run):
    CliRunner().invoke(app, ["epsilon", str(run)])
    return run


def test_the_report_says_when_ledgers_were_audited_and_that_they_hold(run):
    found, said = findings(audited(run))
    assert any("chains and signatures hold" in text for _, text in found)
    (when,) = said["audited"]
    assert when.startswith("Audit of the ledgers (fedllm audit epsilon): 20")
    assert when.endswith("UTC")
    assert not any("other files than lie here" in text for _, text in found)
    moved = run.rename(run.parent / "moved")
    assert not any("other files than lie here" in text for _, text in findings(moved)[0])


@pytest.mark.parametrize("what", ["longer", "cut", "gone", "new", "summary.json", "run.toml"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_report_shows_no_audit_of_other_ledgers_as_if_it_were_of_these(run, what, language):
    audited(run)
    file = ledger(run, "site-01")
    changed = what if what.endswith(("json", "toml")) else "ledgers/site-01.sqlite"
    if what == "longer":
        identity = Identity.generate("site-01")
        file.unlink()
        charge(file, "site-01", identity=identity)
    elif what == "cut":
        file.write_bytes(file.read_bytes()[:4096])
    elif what == "gone":
        file.unlink()
    elif what == "new":
        changed = "ledgers/site-04.sqlite"
        charge(ledger(run, "site-04"), "site-04")
    elif what == "summary.json":
        rewrite(run, colluders_epsilon=1.0)
    else:
        ask(run, engine={"threads": 3})
    found, _ = findings(run, language)
    stale = {"en": "made of other files than lie here now", "zh": "与现在文件夹中的不同"}[language]
    (text,) = [text for severity, text in found if severity == "warning" and stale in text]
    assert changed in text
    assert not any("signatures hold" in text or "签名有效" in text for _, text in found)


def test_the_report_says_that_what_was_asked_for_was_changed(run):
    ask(run, privacy={"epsilon": 1.0})
    found, _ = findings(audited(run))
    texts = [text for severity, text in found if severity == "critical"]
    assert any("privacy.epsilon 1.0 ≠ privacy.promised 4.0" in text for text in texts)
    assert any("and 1 was asked for" in text for text in texts)
    assert not any("signatures hold" in text for _, text in found)
    ask(run, privacy={"clipping_norm": 0.7})
    assert any("SHA-256" in text for severity, text in findings(run)[0] if severity == "critical")


def test_an_audit_of_an_earlier_version_is_shown_without_a_date(run):
    audited(run)
    path = run / "audit" / "epsilon.json"
    before = json.loads(path.read_text())
    path.write_text(json.dumps({key: before[key] for key in ("sites", "findings")}))
    _, said = findings(run)
    assert said["audited"] == ["Audit of the ledgers (fedllm audit epsilon): date not recorded"]
