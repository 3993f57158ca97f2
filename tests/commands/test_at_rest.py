"""``fedllm client rekey`` and ``fedllm client log``, and a site whose log is sealed."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from support.kits import make_federation
from typer.testing import CliRunner

from fedllm.at_rest import keyring
from fedllm.at_rest.vault import Vault
from fedllm.cli import app
from fedllm.errors import ConfigError
from fedllm.federation.site.telling import SiteTelling
from fedllm.identity.kits import read_kit
from fedllm.processes import only_one
from fedllm.runs.checkpoints import RunState, load_checkpoint, save_checkpoint
from fedllm_client.node import _files_of
from fedllm_server.jobs import runs_folder
from fedllm_server.sealing import vault_of

LINE = '{"run": "0123456789abcdef", "round": 1, "loss": 1.5}'


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("at-rest")
    make_federation(folder / "operator")
    return folder


@pytest.fixture
def place(federation, tmp_path, monkeypatch):
    monkeypatch.setattr(keyring, "_SCRYPT_LOG_N", 4)
    kit = shutil.copytree(federation / "operator" / "kits" / "anne", tmp_path / "kit")
    state = kit / "state"
    vault = Vault.of(state, read_kit(kit, "site").identity)
    vault.write(state / "own" / "aa.sealed", "own layer", b"of the records")
    (state / "rounds.jsonl").write_text(LINE + "\n")
    return SimpleNamespace(kit=kit, state=state, key=tmp_path / "key")


def run(*arguments: object):
    return CliRunner().invoke(app, ["client", *map(str, arguments)], env={"COLUMNS": "250"})


def test_a_key_is_chosen_and_the_log_is_sealed(place):
    assert run("log", "--kit", place.kit).stdout == LINE + "\n"
    done = run("rekey", "--kit", place.kit, "--to", f"key:file:{place.key}")
    assert done.exit_code == 0, done.exception
    assert (
        f"2 files are sealed with a new key, which a key in file:{place.key} opens" in done.stdout
    )
    assert not (place.state / "rounds.jsonl").exists()
    assert run("log", "--kit", place.kit).stdout == LINE + "\n"
    identity = read_kit(place.kit, "site").identity
    found = Vault.of(place.state, identity).read(place.state / "own" / "aa.sealed", "own layer")
    assert found == b"of the records"
    for path in place.state.rglob("*"):
        assert path.is_dir() or b"records" not in path.read_bytes()
        assert path.is_dir() or b"loss" not in path.read_bytes()


def test_what_the_service_writes_is_sealed_from_then_on(place):
    kit = read_kit(place.kit, "site")
    assert _files_of(kit).sealed_log is None
    run("rekey", "--kit", place.kit, "--to", f"key:file:{place.key}")
    files = _files_of(kit)
    telling = SiteTelling(files.log, None, lambda asked: None, True, files.sealed_log)
    telling.details(ConfigError("a label that is not known"))
    assert not files.log.exists()
    lines = run("log", "--kit", place.kit).stdout.splitlines()
    assert lines[0] == LINE
    assert json.loads(lines[1]) == {"error": "ConfigError", "text": "a label that is not known"}


def test_a_running_client_is_not_disturbed(place):
    with only_one(place.state / "client.lock", "a client"):
        done = run("rekey", "--kit", place.kit, "--to", "own")
    assert isinstance(done.exception, ConfigError)
    assert not (place.state / "keyring.json").exists()


def test_a_service_that_cannot_be_asked_is_told_at_the_start(place, tmp_path):
    path = tmp_path / "passphrase"
    path.write_text("correct horse battery staple\n")
    path.chmod(0o600)
    told = run("rekey", "--kit", place.kit, "--to", f"passphrase:file:{path}", "--json")
    assert json.loads(told.stdout) == {
        "key": f"a passphrase in file:{path}",
        "sealed": 2,
        "left": [],
    }
    path.unlink()
    policy = tmp_path / "site.toml"
    policy.write_text("")
    done = run("start", "--kit", place.kit, "--policy", policy)
    assert isinstance(done.exception, ConfigError)
    assert str(path) in done.exception.message


def test_a_passphrase_that_nobody_types_is_refused(place):
    done = run("rekey", "--kit", place.kit, "--to", "passphrase")
    assert isinstance(done.exception, ConfigError)
    assert "nobody can be asked" in done.exception.message
    assert not (place.state / "keyring.json").exists()


def test_what_a_kill_left_of_a_checkpoint_does_not_keep_keys_from_being_exchanged(
    federation, tmp_path
):
    """What was sealed for another name opens with no key, and both locks would stay for ever."""
    kit = shutil.copytree(federation / "operator" / "kits" / "coordinator", tmp_path / "kit")
    checkpoints = runs_folder(kit) / "bank" / "checkpoints"
    state = RunState("0123456789abcdef", 1, (0.0,), "digest", np.ones(5, dtype=np.float32))
    arguments = ["server", "rekey", "--kit", str(kit), "--to"]

    def exchange(name):
        CliRunner().invoke(app, [*arguments, f"key:file:{tmp_path / name}"], catch_exceptions=False)

    exchange("first")
    save_checkpoint(checkpoints, state, vault_of(kit))
    # In the midst of writing round 2, and between the two renames of round 1 once more.
    shutil.copytree(checkpoints / "round-00001", checkpoints / ".round-00002.ab_4x1zq")
    (checkpoints / "round-00001").rename(checkpoints / "round-00001.old")
    exchange("second")
    (tmp_path / "first").unlink()
    assert load_checkpoint(checkpoints, vault_of(kit)).round == 1
    assert [path.name for path in checkpoints.iterdir()] == ["round-00001"]
    assert len(json.loads((kit / "state" / "keyring.json").read_text())["slots"]) == 1
    # Without the ring, one in clear would be taken, by whomever it is.
    (kit / "state" / "keyring.json").unlink()
    with pytest.raises(ConfigError, match=r"keyring\.json is gone"):
        vault_of(kit)
    with pytest.raises(ConfigError, match=r"keyring\.json is gone"):
        exchange("third")
    assert not (kit / "state" / "keyring.json").exists()


def test_a_coordinators_checkpoints_are_sealed_from_then_on(federation, tmp_path):
    kit = shutil.copytree(federation / "operator" / "kits" / "coordinator", tmp_path / "kit")
    checkpoints = runs_folder(kit) / "bank" / "checkpoints"
    assert vault_of(kit) is None
    state = RunState("0123456789abcdef", 1, (0.0,), "digest", np.ones(5, dtype=np.float32))
    save_checkpoint(checkpoints, state)
    arguments = ["server", "rekey", "--kit", str(kit), "--to", f"key:file:{tmp_path / 'key'}"]
    told = CliRunner().invoke(app, [*arguments, "--json"])
    assert json.loads(told.stdout)["sealed"] == 1
    vault = vault_of(kit)
    assert np.array_equal(load_checkpoint(checkpoints, vault).adapter, state.adapter)
    (tmp_path / "key").unlink()
    done = CliRunner().invoke(app, ["server", "start", "--kit", str(kit)])
    assert isinstance(done.exception, ConfigError)
    assert str(tmp_path / "key") in done.exception.message
