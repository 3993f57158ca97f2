from __future__ import annotations

import json

import pytest
from support.ports import free_port
from typer.testing import CliRunner

from fedllm.cli import app
from fedllm.errors import FedllmError

FEDERATION = """
name = "north"
sites = ["anne", "bob"]
[coordinator]
hosts = ["127.0.0.1"]
"""


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Run a command in an empty folder; give what it printed, or raise its error."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "federation.toml").write_text(f"{FEDERATION}port = {free_port()}\n")
    runner = CliRunner()

    def run(*arguments: str, code: int = 0) -> str:
        done = runner.invoke(app, arguments)
        if isinstance(done.exception, FedllmError):
            raise done.exception
        assert done.exit_code == code, done.output
        return done.output

    return run


def refusal(call, *arguments: str) -> FedllmError:
    with pytest.raises(FedllmError) as caught:
        call(*arguments)
    assert caught.value.remedy
    return caught.value


def test_both_forms_of_the_command(call, tmp_path):
    assert "made  " in call("provision", "federation.toml", "--out", "north")
    assert "made  " not in call("provision", "--out", "north", "federation.toml")
    assert "north" in call("provision", "show", "--dir", "north")
    shown = json.loads(call("provision", "show", "--dir", "north", "--json"))
    assert shown["roster"]["version"] == 1
    assert {party["name"] for party in shown["parties"]} == {
        "operator",
        "coordinator",
        "authority",
        "anne",
        "bob",
    }


def test_help_of_both_forms(call):
    assert "FEDERATION.toml --out DIR | COMMAND" in call("provision", "--help")
    for command in ("show", "sign", "revoke", "renew"):
        assert f"  {command} " in call("provision", "--help")
    assert "--out DIR" in call("provision", "federation.toml", "--help")
    call("provision", code=2)
    call("provision", "federation.toml", code=2)


def test_a_missing_or_wrong_file(call, tmp_path):
    assert (
        "no file nowhere.toml" in refusal(call, "provision", "nowhere.toml", "--out", "x").message
    )
    (tmp_path / "federation.toml").write_text(FEDERATION.replace("hosts", "host"))
    error = refusal(call, "provision", "federation.toml", "--out", "x")
    assert "did you mean 'coordinator.hosts'" in error.remedy
    assert not (tmp_path / "x").exists()


def test_the_json_of_provisioning(call):
    done = json.loads(call("provision", "federation.toml", "--out", "north", "--json"))
    assert done["kits_made"] == ["operator", "coordinator", "authority", "anne", "bob"]
    assert len(bytes.fromhex(done["root"])) == 32


def enroll(call, name: str) -> str:
    """Let a site enroll; return the fingerprint that it reads out."""
    lines = call("client", "enroll", "--name", name, "--out", name).splitlines()
    return next(line for line in lines if line.startswith("fingerprint")).split()[1]


def test_joining_by_phone(call):
    call("provision", "federation.toml", "--out", "north")
    said = enroll(call, "carl")
    output = call(
        "provision", "sign", "carl/request.json", "--dir", "north", "--fingerprint", said.lower()
    )
    root = next(line for line in output.splitlines() if line.startswith("root ")).split()[1]
    accepted = call("client", "accept", "north/answers/carl.json", "--kit", "carl", "--root", root)
    assert "3 sites" in accepted
    call("provision", "revoke", "bob", "--dir", "north")
    assert "roster 3 of 'north', 2 sites" in call(
        "client", "update-roster", "north/roster.json", "--kit", "carl"
    )
    assert "roster 4" in call("provision", "renew", "--dir", "north")


def test_nothing_is_signed_without_the_fingerprint(call, tmp_path):
    call("provision", "federation.toml", "--out", "north")
    enroll(call, "carl")
    request = ("provision", "sign", "carl/request.json", "--dir", "north")
    assert refusal(call, *request).exit_code == 2
    wrong = refusal(call, *request, "--fingerprint", "ABCD-ABCD-ABCD-ABCD-ABCD-ABCD")
    assert wrong.exit_code == 3
    assert not (tmp_path / "north" / "answers").exists()
    assert json.loads((tmp_path / "north" / "roster.json").read_text())["roster"]["version"] == 1


def test_no_root_is_pinned_without_the_fingerprint(call, tmp_path):
    call("provision", "federation.toml", "--out", "north")
    said = enroll(call, "carl")
    call("provision", "sign", "carl/request.json", "--dir", "north", "--fingerprint", said)
    answer = ("client", "accept", "north/answers/carl.json", "--kit", "carl")
    assert refusal(call, *answer).exit_code == 2
    assert refusal(call, *answer, "--root", said).exit_code == 3
    assert json.loads((tmp_path / "carl" / "kit.json").read_text())["root"] is None


def test_a_huge_file_is_not_read(call, tmp_path):
    call("provision", "federation.toml", "--out", "north")
    with (tmp_path / "request.json").open("wb") as stream:
        stream.truncate(1 << 30)
    error = refusal(call, "provision", "sign", "request.json", "--dir", "north")
    assert "too large" in error.message


@pytest.mark.parametrize("group", ["client", "authority", "server"])
def test_every_role_can_join(call, group):
    for command in ("enroll", "accept", "update-roster"):
        assert "--" in call(group, command, "--help")


def test_check_prints_a_table_and_an_exit_code(call, tmp_path):
    call("provision", "federation.toml", "--out", "north")
    (tmp_path / "site.toml").write_text('[data]\ntrain = "nowhere.jsonl"\n')
    arguments = ("client", "check", "--kit", "north/kits/anne", "--policy", "site.toml")
    output = call(*arguments, code=1)
    assert "Not ready: network, data, training." in output
    found = json.loads(call(*arguments, "--json", code=1))
    assert [f["check"] for f in found][:3] == ["kit", "roster", "network"]
