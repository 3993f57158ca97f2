"""What ``fedllm ledger`` shows people and scripts, and what it overwrites."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from support.ledger import CEILING, SIGNER, attack, charge_before, filled, register, row
from typer.testing import CliRunner

from fedllm.cli import app
from fedllm.errors import ConfigError
from fedllm.identity.keys import Identity
from fedllm.identity.roster import Roster
from fedllm.privacy.accounting.events import Gaussian
from fedllm.privacy.ledger.audit import export_ledger, verify_ledger
from fedllm.privacy.ledger.budget import Ceiling, Charge
from fedllm.privacy.ledger.entries import TamperedError, make_entry
from fedllm.privacy.ledger.ledger import Ledger


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return Path("ledger.sqlite")


def fedllm(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def named(path, name, run="f00d"):
    ledger = Ledger.open(path, "site-00", SIGNER)
    ledger.reserve(Charge(run, 1, "", (Gaussian(10.0),), name=name), CEILING)
    return ledger


def test_a_run_is_shown_by_its_name_and_its_identifier(path):
    filled(path)
    named(path, "bank-intents")
    text = fedllm("ledger", "show", str(path))
    assert any("bank-intents" in line and "f00d" in line for line in text.splitlines())
    (data,) = json.loads(fedllm("ledger", "show", str(path), "--json"))["accounts"]
    assert [(run["run"], run["name"]) for run in data["runs"]] == [
        ("run", None),
        ("f00d", "bank-intents"),
    ]
    # In what an auditor is given too, and signed there.
    fedllm("ledger", "export", str(path), "--out", "copy.jsonl")
    assert "bank-intents" in fedllm("ledger", "show", "copy.jsonl")
    Path("copy.jsonl").write_text(Path("copy.jsonl").read_text().replace("intents", "extents"))
    with pytest.raises(TamperedError):
        verify_ledger(Path("copy.jsonl"))


def test_the_greek_letters_of_the_columns_are_explained(path):
    named(path, "one")
    text = " ".join(fedllm("ledger", "show", str(path)).split())
    assert "ε (epsilon) measures what can be learned" in text
    assert "except with probability δ (delta)" in text


def test_a_run_of_two_names_shows_both(path):
    named(path, "one")
    named(path, "two")
    assert "one, two" in fedllm("ledger", "show", str(path))


@pytest.mark.parametrize("name", ["\x1b[31mred", "[bold]x[/bold]", "\u202eevil"])
def test_names_do_not_steer_the_terminal(path, name):
    named(path, name)
    text = fedllm("ledger", "show", str(path))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert name[1:] in text


@pytest.mark.parametrize("wrong", [5, "", None, ["x"]])
def test_a_signed_name_that_is_none_is_found(path, wrong):
    ledger = named(path, "x")
    body = {**_last(path), "run_name": wrong, "round": 7, "attempt": 1}
    entry = make_entry(SIGNER, "site-00", ledger.head(), "reserve", body)
    attack(path, ("INSERT INTO entries VALUES (?, ?, ?, ?)", row(entry)))
    with pytest.raises(TamperedError, match="impossible"):
        verify_ledger(path)


def _last(path):
    export_ledger(path, Path("last.jsonl"), force=True)
    return json.loads(Path("last.jsonl").read_bytes().splitlines()[-1])["content"]["body"]


def test_the_ceiling_before_the_first_charge(path):
    Ledger.open(path, "site-00", SIGNER)
    assert "no charge yet" in fedllm("ledger", "show", str(path))
    Path("site.toml").write_text("[budget]\nepsilon = 3.25\ndelta = 1e-6\ncolluders_epsilon = 9\n")
    text = fedllm("ledger", "show", str(path), "--policy", "site.toml")
    assert "3.25" in text
    assert "1e-06" in text
    assert "of 9" in text
    (data,) = json.loads(fedllm("ledger", "show", str(path), "--policy", "site.toml", "--json"))[
        "accounts"
    ]
    limits = {"epsilon": 3.25, "colluders_epsilon": 9.0, "adaptive_epsilon": 8.5}
    assert data["ceiling"] == {"delta": 1e-6, **limits}


def test_what_is_spent_counts_at_the_policys_delta(path):
    named(path, "x")
    Path("site.toml").write_text("[budget]\nepsilon = 3.25\ndelta = 1e-9\n")
    spent = [
        json.loads(fedllm("ledger", "show", str(path), "--json", *more))["accounts"][0]["epsilon"]
        for more in ([], ["--policy", "site.toml"])
    ]
    assert spent[0] < spent[1]


def test_an_export_goes_on(path):
    ledger = filled(path)
    out = Path("copy.jsonl")
    export_ledger(path, out)
    first = out.read_bytes()
    export_ledger(path, out)
    assert out.read_bytes() == first
    named(path, "more")
    head = export_ledger(path, out)
    assert out.read_bytes().startswith(first)
    assert head == ledger.head()
    said = json.loads(fedllm("ledger", "export", str(path), "--out", str(out), "--json"))
    assert said == {"file": str(out), "entries": head.sequence, "head": str(head)}


@pytest.mark.parametrize("there", ["other ledger's export", "text", "longer", "edited"])
def test_an_export_replaces_nothing_else(path, there):
    filled(path)
    out = Path("copy.jsonl")
    if there == "text":
        out.write_text("notes\n")
    elif there == "other ledger's export":
        filled(Path("other.sqlite"), site="site-01")
        export_ledger(Path("other.sqlite"), out)
    elif there == "longer":
        shutil.copy(path, "older.sqlite")
        named(path, "more")
        export_ledger(path, out)
        shutil.copy("older.sqlite", path)
    else:
        export_ledger(path, out)
        out.write_bytes(out.read_bytes().replace(b'"run":"run"', b'"run":"ran"'))
    before = out.read_bytes()
    with pytest.raises(ConfigError, match=r"copy\.jsonl"):
        export_ledger(path, out)
    assert out.read_bytes() == before
    fedllm("ledger", "export", str(path), "--out", str(out), "--force")
    assert verify_ledger(out) == verify_ledger(path)


@pytest.mark.parametrize("force", [True, False])
def test_an_export_never_replaces_a_ledger(path, force):
    filled(path)
    filled(Path("other.sqlite"), site="site-01")
    Path("link.jsonl").symlink_to(path)
    for out in (path, Path("other.sqlite"), Path("link.jsonl")):
        before = out.read_bytes()
        with pytest.raises(ConfigError, match="is a ledger"):
            export_ledger(path, out, force)
        assert out.read_bytes() == before


def test_a_charge_without_a_name_is_written_as_before(path):
    ledger = named(path, "")
    assert "run_name" not in _last(path)
    assert replace(ledger.verify().accounts[0].runs[0]).name == ""


def test_what_is_left_to_an_account_that_is_declared_now(path):
    """Whatever was charged before the declaration counts for it."""
    named(path, "before")
    Path("site.toml").write_text(
        '[budget]\nepsilon = 3.25\naccount = "oncology"\n[data]\ntrain = "x"\nunit = "patient"\n'
    )
    text = fedllm("ledger", "show", str(path), "--policy", "site.toml")
    assert "all records" in text
    found = json.loads(fedllm("ledger", "show", str(path), "--policy", "site.toml", "--json"))
    assert [one["account"] for one in found["accounts"]] == [None, "oncology"]
    assert [len(one["runs"]) for one in found["accounts"]] == [1, 0]
    everything, oncology = (one["epsilon"] for one in found["accounts"])
    assert oncology == everything > 0


def test_a_ledger_of_before_says_that_all_of_it_counts(path):
    Ledger.open(path, "site-00", SIGNER)
    for number, name in enumerate("abc"):
        charge_before(path, register(path, name), (Gaussian(10.0, 20),), CEILING, number)
    text = " ".join(fedllm("ledger", "show", str(path)).split())
    assert "3 charges were made by data set" in text
    assert "They count for all records" in text
    found = json.loads(fedllm("ledger", "show", str(path), "--json"))
    assert found["charges_by_data_set"] == 3
    assert found["accounts"][0]["epsilon"] > CEILING.epsilon
    fedllm("ledger", "verify", str(path))


def roster_beside(path: Path, **titles: str) -> None:
    (path.parent / "roster.json").write_text(Roster(b"a" * 32, {}, titles=titles).to_json())


def test_a_site_is_shown_by_the_name_that_its_people_write(path):
    filled(path)
    roster_beside(path, **{"site-00": "北京医院"})
    assert "北京医院 (site-00)" in fedllm("ledger", "show", str(path))
    assert "北京医院 (site-00)" in fedllm("ledger", "verify", str(path))
    said = json.loads(fedllm("ledger", "show", str(path), "--json"))
    assert (said["site"], said["title"]) == ("site-00", "北京医院")
    Path("roster.json").unlink()
    assert json.loads(fedllm("ledger", "show", str(path), "--json"))["title"] is None


def test_what_a_site_let_go_is_not_called_finished(path):
    filled(path)
    text = fedllm("ledger", "show", str(path))
    assert "Released" in text
    assert "Finished" not in text


def test_what_colluders_learn_is_explained_where_it_is_more(path):
    filled(path)
    assert "puts together" not in fedllm("ledger", "show", str(path))
    ledger = Ledger.open(path, "site-00", SIGNER)
    ledger.reserve(Charge("f00d", 1, "", (Gaussian(10.0),), (Gaussian(5.0),)), CEILING)
    assert "puts together" in fedllm("ledger", "show", str(path))


def test_a_name_is_never_cut(path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    name = "a-run-whose-name-is-as-long-as-it-may-be-" + "x" * 20
    named(path, name, run="0123456789abcdef")
    lines = fedllm("ledger", "show", str(path)).splitlines()
    cells = [line.split("│") for line in lines if line.startswith("│")]
    assert "".join(row[1].strip() for row in cells if len(row) == 8).endswith("x" * 20)
    assert "…" not in "".join(lines)
    assert "0123456789abcdef" in "".join(row[2].strip() for row in cells if len(row) == 8)


@pytest.mark.parametrize("force", [True, False])
@pytest.mark.parametrize("size", [1, 16, 100])
def test_an_export_never_replaces_what_is_left_of_a_ledger(path, force, size):
    """Its owner may still restore it, and knows from it that something is lost."""
    filled(path)
    out = Path("damaged.sqlite")
    shutil.copy(path, out)
    content = bytes(size) + out.read_bytes()[size:]
    out.write_bytes(content)
    with pytest.raises(ConfigError, match=r"damaged\.sqlite is a ledger") as caught:
        export_ledger(path, out, force)
    assert caught.value.remedy == "choose another path"
    assert out.read_bytes() == content


def test_an_export_replaces_an_earlier_one_and_an_empty_file(path):
    filled(path)
    out = Path("out.jsonl")
    out.touch()
    export_ledger(path, out)
    export_ledger(path, out, force=True)
    out.write_text("words\n")
    export_ledger(path, out, force=True)
    verify_ledger(out)


def test_a_key_that_fits_no_entry_is_another_key_before_it_is_an_attack(path):
    filled(path)
    other = Identity.generate("site-00").public_bytes()
    with pytest.raises(TamperedError) as failed:
        fedllm("ledger", "verify", str(path), "--public-key", other.hex())
    assert failed.value.exit_code == 4
    assert "no entry is signed with the key that was given" in failed.value.message
    assert SIGNER.public_bytes().hex() in failed.value.message
    assert failed.value.remedy.startswith("compare the key with the one in the signed roster")


def test_an_entry_by_another_key_is_no_wrong_key(path):
    """The key that was given fits the others."""
    filled(path)
    attack(path, "UPDATE entries SET signature = zeroblob(64) WHERE sequence = 2")
    with pytest.raises(TamperedError, match="entry 2 was not signed") as failed:
        verify_ledger(path, SIGNER.public_bytes())
    assert failed.value.remedy.startswith("spend nothing more")


def test_verify_says_what_all_charges_together_exceed(path):
    """Each kept to the ceiling of its data set, and all of them may have touched one record."""
    Ledger.open(path, "site-00", SIGNER)
    for number in range(12):
        dataset = register(path, f"records-{number}")
        charge_before(path, dataset, (Gaussian(10.0, 15),), CEILING, 0, run=f"run-{number}")
    said = " ".join(fedllm("ledger", "verify", str(path)).split())
    total = verify_ledger(path).accounts[0].spent.value
    assert total > CEILING.epsilon
    assert f"all charges together come to epsilon {total:.2f}" in said
    assert "12 charges were made by data set" in said


def test_verify_says_that_a_charge_had_no_ceiling(path):
    ledger = Ledger.open(path, "site-00", SIGNER)
    ledger.reserve(Charge("run", 1, "", (Gaussian(10.0),)), Ceiling(math.inf, 1e-5))
    assert "the last charge had no ceiling" in fedllm("ledger", "verify", str(path))
    ledger.reserve(Charge("run", 2, "", (Gaussian(10.0),)), CEILING)
    said = fedllm("ledger", "verify", str(path))
    assert "ceiling" not in said
