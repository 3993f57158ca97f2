"""The passphrase of the operator's keys: where it comes from, and that it shows nowhere."""

from __future__ import annotations

import os

import pytest
import typer
from typer.testing import CliRunner

from fedllm.cli import app
from fedllm.commands.passphrase import read_passphrase
from fedllm.errors import ConfigError, FedllmError
from fedllm.identity.operator_keys import load_root

GOOD = "five words nobody else took"
FEDERATION = """
name = "north"
sites = ["anne", "bob"]
[coordinator]
hosts = ["127.0.0.1"]
"""


@pytest.fixture
def call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "federation.toml").write_text(FEDERATION)
    (tmp_path / "secret").write_text(GOOD + "\n")
    (tmp_path / "secret").chmod(0o600)
    runner = CliRunner()

    def run(*arguments: str) -> str:
        done = runner.invoke(app, arguments)
        if isinstance(done.exception, FedllmError):
            raise done.exception
        assert done.exit_code == 0, done.output
        assert GOOD not in done.output
        return done.output

    return run


MAKE = ("provision", "federation.toml", "--out", "north")


def test_from_a_file_over_the_whole_life(call, tmp_path):
    assert "not encrypted" not in call(*MAKE, "--passphrase-from", "file:secret")
    assert load_root(tmp_path / "north", GOOD.encode())
    with pytest.raises(ConfigError, match="nobody can be asked") as caught:
        call("provision", "renew", "--dir", "north")
    assert "--passphrase-from" in caught.value.remedy
    assert '"keys_encrypted": true' in call("provision", "show", "--dir", "north", "--json")
    for step in ("renew", "revoke"):
        names = ["anne"] if step == "revoke" else []
        call("provision", step, *names, "--dir", "north", "--passphrase-from", "file:secret")
    (tmp_path / "wrong").write_text("a passphrase that is not it")
    (tmp_path / "wrong").chmod(0o600)
    with pytest.raises(ConfigError, match="does not open") as caught:
        call("provision", "renew", "--dir", "north", "--passphrase-from", "file:wrong")
    assert "is not it" not in str(caught.value)
    passphrase = ("provision", "passphrase", "--dir", "north", "--passphrase-from", "file:secret")
    assert "not protected any more" in call(*passphrase, "--remove")
    assert "not encrypted" in call("provision", "renew", "--dir", "north")


def test_a_folder_without_one_says_so_and_can_get_one(call, tmp_path):
    assert "are not encrypted; to protect them" in call(*MAKE)
    set_it = ("provision", "passphrase", "--dir", "north")
    with pytest.raises(ConfigError, match="no new passphrase"):
        call(*set_it)
    assert "are protected" in call(*set_it, "--new-passphrase-from", "file:secret")
    assert load_root(tmp_path / "north", GOOD.encode())


def test_on_a_terminal_it_is_asked_for_without_echo(call, tmp_path, monkeypatch):
    asked = []

    def prompt(words, **options):
        asked.append(options)
        return GOOD

    runner = CliRunner()
    monkeypatch.setattr(typer, "prompt", prompt)
    monkeypatch.setattr("fedllm.commands.passphrase._somebody_is_there", lambda: True)
    assert runner.invoke(app, MAKE).exit_code == 0
    assert load_root(tmp_path / "north", GOOD.encode())
    assert runner.invoke(app, ["provision", "renew", "--dir", "north"]).exit_code == 0
    assert all(options["hide_input"] for options in asked)
    assert [options["confirmation_prompt"] for options in asked] == [True, False]


def test_from_the_environment_it_is_taken_out_of_it(monkeypatch):
    monkeypatch.setenv("FEDLLM_ROOT", GOOD)
    assert read_passphrase("env:FEDLLM_ROOT") == GOOD.encode()
    assert "FEDLLM_ROOT" not in os.environ


def test_from_a_descriptor():
    ours, theirs = os.pipe()
    os.write(theirs, GOOD.encode() + b"\r\n")
    os.close(theirs)
    assert read_passphrase(f"fd:{ours}") == GOOD.encode()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (GOOD, "not of a known form"),
        ("pass:word", "not of a known form"),
        ("fd:-1", "not of a known form"),
        ("fd:99999", "cannot be read"),
        ("file:", "not of a known form"),
        ("file:nowhere", "cannot be read"),
        ("file:/dev/null", "no passphrase"),
        ("env:FEDLLM_NOT_SET", "no passphrase"),
        ("file:open", "other users"),
        ("file:long", "no passphrase"),
    ],
)
def test_sources_that_hold_none(call, tmp_path, source, words):
    (tmp_path / "open").write_text(GOOD)
    (tmp_path / "open").chmod(0o640)
    (tmp_path / "long").write_text("x" * 2000)
    (tmp_path / "long").chmod(0o600)
    with pytest.raises(ConfigError, match=words) as caught:
        read_passphrase(source)
    assert GOOD not in str(caught.value)
    assert caught.value.remedy
