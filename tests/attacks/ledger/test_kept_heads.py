"""A site that spends and then shows another ledger; the coordinator kept the heads."""

from __future__ import annotations

import json
import shutil

import pytest
from support.federation import build, small_config
from support.ledger import THIEF
from typer.testing import CliRunner

from fedllm.commands.audit import app as audit
from fedllm.commands.ledger import app as ledger_app
from fedllm.federation.protocol.messages import Trained
from fedllm.privacy.ledger.audit import read_state
from fedllm.privacy.ledger.entries import TamperedError
from fedllm.privacy.ledger.heads import keep_heads, read_heads
from fedllm.randomness import RandomStream
from fedllm.runs.names import HEADS as HEADS_FILE


@pytest.fixture
def federation(tiny_checkpoint, tmp_path):
    return build(tmp_path, small_config(tiny_checkpoint("bert"), rounds={"count": 3}))


def ledger_file(federation, name):
    return federation.sites[name]._files.ledger


def test_the_coordinator_hears_the_end_of_each_ledger(federation):
    first = federation.round(1).heads
    second = federation.round(2, 2).heads
    for name in federation.sites:
        assert second[name].sequence == first[name].sequence + 3, "settled, reserved, committed"
        account = federation.sites[name]._account()
        # On which sum a site settled is written after its update left.
        assert account.head().sequence == second[name].sequence + 1
        path, key = ledger_file(federation, name), federation.roster.sites[name]
        assert read_state(path, key, [first[name], second[name]]).head == account.head()


@pytest.mark.parametrize("lie", ["nothing", "another site's", "an unsigned one"])
def test_an_update_without_the_head_of_its_ledger_is_not_counted(federation, lie):
    known = {}

    def tamper(kind, name, message):
        if kind != "train" or not isinstance(message, Trained):
            return message
        known[name] = message.header
        if name != "site-2":
            return message
        forged = {
            "nothing": {"ledger": "", "ledger_signature": ""},
            "another site's": {
                "ledger": known["site-0"].ledger,
                "ledger_signature": known["site-0"].ledger_signature,
            },
            "an unsigned one": {"ledger_signature": THIEF.sign(b"x").hex()},
        }[lie]
        return Trained(message.header.model_copy(update=forged), message.update)

    federation.tamper = tamper
    outcome = federation.round(1)
    assert outcome.survivors == ("site-0", "site-1")
    assert "did not sign" in outcome.dropped["site-2"]
    assert set(outcome.heads) == {"site-0", "site-1"}


def run_folder(federation, folder):
    (folder / "ledgers").mkdir(parents=True)
    for name in federation.sites:
        shutil.copy(ledger_file(federation, name), folder / "ledgers" / f"{name}.sqlite")
    return folder


def test_a_ledger_restored_from_before_a_round_is_found(federation, tmp_path):
    keep_heads(tmp_path / HEADS_FILE, "run", 1, federation.round(1).heads)
    older = run_folder(federation, tmp_path / "older")
    keep_heads(tmp_path / HEADS_FILE, "run", 2, federation.round(2, 2).heads)
    whole = run_folder(federation, tmp_path / "whole")
    heads = ["--heads", str(tmp_path / HEADS_FILE)]
    run = CliRunner().invoke
    good = run(ledger_app, ["verify", str(whole / "ledgers/site-1.sqlite"), *heads])
    assert good.exit_code == 0
    assert "2 heads" in good.stdout
    assert run(ledger_app, ["verify", str(older / "ledgers/site-1.sqlite")]).exit_code == 0
    cut = run(ledger_app, ["verify", str(older / "ledgers/site-1.sqlite"), *heads])
    assert isinstance(cut.exception, TamperedError)
    assert "cut off" in cut.exception.message
    # An auditor of the run's folder need not name the file.
    for folder in (whole, older):
        shutil.copy(tmp_path / HEADS_FILE, folder)
    found = run(audit, ["epsilon", str(whole), "--json"])
    assert "no anchor" not in found.stdout
    assert found.exit_code == 0
    found = run(audit, ["epsilon", str(older), "--json"])
    assert isinstance(found.exception, TamperedError)
    findings = json.loads(found.stdout)["findings"]
    assert [f["severity"] for f in findings].count("critical") == 3


def test_a_keeper_cannot_accuse_a_site_of_what_it_did_not_sign(federation, tmp_path):
    path = tmp_path / HEADS_FILE
    keep_heads(path, "run", 1, federation.round(1).heads)
    (line, *_) = path.read_text().splitlines()
    value = json.loads(line)
    forged = RandomStream.seeded(1, "forged").below(256, 64).astype("u1").tobytes().hex()
    path.write_text(json.dumps({**value, "signature": forged}) + "\n")
    assert list(read_heads(path)) == ["site-0"]
    ledger = str(ledger_file(federation, "site-0"))
    found = CliRunner().invoke(ledger_app, ["verify", ledger, "--heads", str(path)])
    assert isinstance(found.exception, TamperedError)
    assert "not signed" in found.exception.message
