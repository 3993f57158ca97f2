"""A kit's sealed files, and the exchange of their keys, cut off at every instant."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fedllm.at_rest import keyring
from fedllm.at_rest.keyring import PLACE_VARIABLE, Keyring, Lock, Secrets, new_secret
from fedllm.at_rest.stream import CHUNK_BYTES, SealedError
from fedllm.at_rest.vault import DERIVATION, Vault
from fedllm.errors import ConfigError, FedllmError
from fedllm.identity.keys import Identity

KINDS = [("own/*.sealed", "own layer")]
CONTENTS = {f"own/{name}.sealed": name.encode() * 5000 for name in ("aa", "bb", "cc")}
LINES = ['{"loss": 1.5}', '{"loss": 1.25}']
PASSPHRASE = b"correct horse battery staple"


class Crash(BaseException):
    """A power cut."""


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    """Passphrases that cost nothing to try."""
    monkeypatch.setattr(keyring, "_SCRYPT_LOG_N", 4)


@pytest.fixture
def place(tmp_path):
    """The folder of a site that sealed three layers and has a log in clear."""
    identity, state = Identity.generate("anne"), tmp_path / "state"
    vault = Vault.of(state, identity)
    for name, content in CONTENTS.items():
        vault.write(state / name, "own layer", content)
    (state / "rounds.jsonl").write_text("\n".join(LINES) + "\n")
    return state, identity, tmp_path


def lock_in(folder: Path, name: str) -> Lock:
    return Lock.parse(f"key:file:{folder / name}")


def exchange(state, identity, lock, ask=lambda: None) -> list[Path]:
    vault = Vault.of(state, identity, ask)
    secret = new_secret(lock, Secrets(identity.derive(DERIVATION), ask))
    return vault.rekey(lock, secret, KINDS)


def all_opens(state, identity, ask=lambda: None) -> bool:
    vault = Vault.of(state, identity, ask)
    found = {name: vault.read(state / name, "own layer") for name in CONTENTS}
    return found == CONTENTS and list(vault.log_lines()) == LINES


def test_without_chosen_keys_the_kits_own_secret_seals(place):
    state, identity, _ = place
    assert all_opens(state, identity)
    assert not Vault.of(state, identity).chosen
    assert b"aaaa" not in (state / "own/aa.sealed").read_bytes()
    assert (state / "own/aa.sealed").stat().st_mode & 0o777 == 0o600
    with pytest.raises(SealedError):
        Vault.of(state, Identity.generate("anne")).read(state / "own/aa.sealed", "own layer")


def test_a_file_in_anothers_place_is_refused(place):
    state, identity, _ = place
    shutil.copy(state / "own/aa.sealed", state / "own/bb.sealed")
    vault = Vault.of(state, identity)
    with pytest.raises(SealedError, match=r"own/bb.sealed does not open"):
        vault.read(state / "own/bb.sealed", "own layer")
    with pytest.raises(SealedError):
        vault.read(state / "own/aa.sealed", "site log")


@pytest.mark.parametrize("kind", ["key file", "key env", "passphrase file", "passphrase asked"])
def test_keys_come_from_a_file_the_environment_or_a_passphrase(place, monkeypatch, kind):
    state, identity, folder = place
    path = folder / "secret"
    monkeypatch.setenv("KIT_KEY", "ab" * 32)
    if kind.startswith("passphrase"):
        path.write_bytes(PASSPHRASE + b"\n")
        path.chmod(0o600)
    lock = Lock.parse(
        {
            "key file": f"key:file:{path}",
            "key env": "key:env:KIT_KEY",
            "passphrase file": f"passphrase:file:{path}",
            "passphrase asked": "passphrase",
        }[kind]
    )

    def ask() -> bytes | None:
        return PASSPHRASE

    assert exchange(state, identity, lock, ask) == []
    assert all_opens(state, identity, ask)
    assert not (state / "rounds.jsonl").exists()
    assert b"loss" not in (state / "rounds.sealed").read_bytes()
    # The kit's own secret opens nothing any more, nor does another of the same kind.
    path.unlink(missing_ok=True)
    monkeypatch.setenv("KIT_KEY", "cd" * 32)
    if kind.endswith("file"):
        with pytest.raises(ConfigError, match="cannot be read"):
            Vault.of(state, identity, ask)
        path.write_bytes(b"ef" * 32)
        path.chmod(0o600)
    with pytest.raises(FedllmError, match=r"keyring.json does not open"):
        Vault.of(state, identity, lambda: b"another passphrase")


def test_nobody_to_ask_is_said(place):
    state, identity, _ = place
    exchange(state, identity, Lock("passphrase"), lambda: PASSPHRASE)
    with pytest.raises(ConfigError, match="nobody can be asked") as caught:
        Vault.of(state, identity, lambda: None)
    assert PLACE_VARIABLE in caught.value.remedy


def test_the_environment_may_say_where_the_secret_stands_now(place, monkeypatch):
    state, identity, folder = place
    lock = lock_in(folder, "key")
    exchange(state, identity, lock)
    (folder / "key").rename(folder / "moved")
    monkeypatch.setenv(PLACE_VARIABLE, f"file:{folder / 'moved'}")
    assert all_opens(state, identity)


def test_a_key_file_is_made_for_its_owner_alone(place):
    state, identity, folder = place
    exchange(state, identity, lock_in(folder, "key"))
    assert (folder / "key").stat().st_mode & 0o777 == 0o600
    assert len((folder / "key").read_text()) == 65
    (folder / "key").chmod(0o644)
    with pytest.raises(ConfigError, match="other users of this machine can read"):
        Vault.of(state, identity)


def crashing(monkeypatch, at: int) -> None:
    """Let the ``at``-th exchange or removal of a file be the first that does not happen."""
    count = [0]
    replace, unlink = Path.replace, Path.unlink

    def counted(right):
        def call(path, *arguments, **named):
            if path.name.endswith(".lock"):
                return right(path, *arguments, **named)
            count[0] += 1
            if count[0] >= at:
                raise Crash
            return right(path, *arguments, **named)

        return call

    monkeypatch.setattr(Path, "replace", counted(replace))
    monkeypatch.setattr(Path, "unlink", counted(unlink))


@pytest.mark.parametrize("second", ["the same key", "another key"])
def test_at_every_instant_of_a_crash_the_old_or_the_new_key_opens_everything(
    place, monkeypatch, second
):
    state, identity, folder = place
    old, new = lock_in(folder, "old"), lock_in(folder, "new")
    exchange(state, identity, old)
    new_secret(new, Secrets(b""))
    whole, instants = folder / "whole", 0
    state.rename(whole)
    for at in range(1, 40):
        shutil.rmtree(state, ignore_errors=True)
        shutil.copytree(whole, state)
        with monkeypatch.context() as patched:
            crashing(patched, at)
            try:
                exchange(state, identity, new)
                break
            except Crash:
                instants += 1
        opened = [one for one in ("old", "new") if opens_with_only(folder, state, identity, one)]
        # Before the ring has the new lock, and when it has forgotten the old one, there is one.
        assert opened == ["old"] if at == 1 else opened == ["old", "new"], at
        # Either key finishes it.
        then = new if second == "the same key" else lock_in(folder, "third")
        exchange(state, identity, then)
        assert all_opens(state, identity)
        ring = json.loads((state / "keyring.json").read_text())
        assert len(ring["slots"]) == 1
    # The ring, three layers, the log, the ring.
    assert instants >= 6


def test_a_first_exchange_that_is_cut_off_loses_and_doubles_nothing(place, monkeypatch):
    state, identity, folder = place
    lock, whole, instants = lock_in(folder, "key"), folder / "whole", 0
    new_secret(lock, Secrets(b""))
    state.rename(whole)
    for at in range(1, 40):
        shutil.rmtree(state, ignore_errors=True)
        shutil.copytree(whole, state)
        with monkeypatch.context() as patched:
            crashing(patched, at)
            try:
                exchange(state, identity, lock)
                break
            except Crash:
                instants += 1
        assert all_opens(state, identity), at
        exchange(state, identity, lock)
        assert all_opens(state, identity), at
        assert not (state / "rounds.jsonl").exists()
    # The ring, three layers, the sealed log, the one in clear, the ring.
    assert instants >= 7


def test_what_was_written_in_clear_meanwhile_is_kept(place):
    state, identity, folder = place
    exchange(state, identity, lock_in(folder, "key"))
    (state / "rounds.jsonl").write_text('{"loss": 9}\n')
    assert list(Vault.of(state, identity).log_lines()) == ['{"loss": 9}', *LINES]
    exchange(state, identity, lock_in(folder, "key"))
    assert sorted(Vault.of(state, identity).log_lines()) == sorted(['{"loss": 9}', *LINES])


def opens_with_only(folder: Path, state: Path, identity: Identity, name: str) -> bool:
    """Whether everything opens while the files of all other keys are gone."""
    away = [path for path in (folder / "old", folder / "new") if path.name != name]
    hidden = [(path, path.with_suffix(".away")) for path in away]
    for path, aside in hidden:
        path.rename(aside)
    try:
        return all_opens(state, identity)
    except FedllmError:
        return False
    finally:
        for path, aside in hidden:
            aside.rename(path)


def test_after_an_exchange_the_old_key_opens_nothing(place):
    state, identity, folder = place
    exchange(state, identity, lock_in(folder, "old"))
    kept = shutil.copytree(state, folder / "before")
    exchange(state, identity, lock_in(folder, "new"))
    before = Vault.of(kept, identity).keys
    assert not set(before.all) & set(Vault.of(state, identity).keys.all)
    for name in CONTENTS:
        assert (state / name).read_bytes() != (kept / name).read_bytes()
    (folder / "new").unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        Vault.of(state, identity)


def test_a_damaged_file_stops_the_exchange_and_both_keys_stay(place):
    state, identity, folder = place
    exchange(state, identity, lock_in(folder, "old"))
    damaged = bytearray((state / "own/bb.sealed").read_bytes())
    damaged[-1] ^= 1
    (state / "own/bb.sealed").write_bytes(damaged)
    with pytest.raises(SealedError, match=r"own/bb.sealed"):
        exchange(state, identity, lock_in(folder, "new"))
    assert (state / "own/bb.sealed").read_bytes() == damaged
    for name in ("aa", "cc"):
        path = state / f"own/{name}.sealed"
        assert Vault.of(state, identity).read(path, "own layer") == CONTENTS[f"own/{name}.sealed"]


def test_a_file_larger_than_a_chunk_is_sealed_anew_in_pieces(place, monkeypatch):
    state, identity, folder = place
    large = bytes(3 * CHUNK_BYTES + 7)
    Vault.of(state, identity).write(state / "own/large.sealed", "own layer", large)
    exchange(state, identity, lock_in(folder, "key"))
    assert Vault.of(state, identity).read(state / "own/large.sealed", "own layer") == large


def test_who_opened_the_vault_before_an_exchange_writes_nothing_with_old_keys(place):
    state, identity, folder = place
    stale = Vault.of(state, identity)
    exchange(state, identity, lock_in(folder, "key"))
    with pytest.raises(SealedError, match="exchanged meanwhile"):
        stale.write(state / "own/dd.sealed", "own layer", b"x")
    assert not (state / "own/dd.sealed").exists()


def test_a_ring_that_was_taken_away_is_missed(place):
    """Else new lines would be sealed under a secret that lies beside them."""
    state, identity, folder = place
    exchange(state, identity, lock_in(folder, "key"))
    (state / "keyring.json").unlink()
    with pytest.raises(ConfigError, match=r"keyring.json is gone"):
        Vault.of(state, identity)


@pytest.mark.parametrize(
    "change",
    [
        lambda ring: ring.update(format="fedllm.keyring.v9"),
        lambda ring: ring.update(more=1),
        lambda ring: ring["slots"].clear(),
        lambda ring: ring["slots"].extend(ring["slots"] * 9),
        lambda ring: ring["slots"][0].update(scrypt_log_n=60),
        lambda ring: ring["slots"][0].update(kind="none"),
        lambda ring: ring["slots"][0].update(salt="00"),
        lambda ring: ring["slots"][0].update(box="xx"),
        lambda ring: ring["slots"][0].pop("box"),
    ],
)
def test_a_ring_that_is_none_is_named(place, change):
    state, identity, folder = place
    exchange(state, identity, lock_in(folder, "key"))
    ring = json.loads((state / "keyring.json").read_text())
    change(ring)
    (state / "keyring.json").write_text(json.dumps(ring))
    with pytest.raises(ConfigError, match=r"keyring.json is damaged"):
        Vault.of(state, identity)


@pytest.mark.parametrize("name", ["salt", "box"])
def test_a_changed_ring_does_not_open(place, name):
    state, identity, folder = place
    exchange(state, identity, lock_in(folder, "key"))
    ring = json.loads((state / "keyring.json").read_text())
    text = ring["slots"][0][name]
    ring["slots"][0][name] = text[:-1] + ("0" if text[-1] != "0" else "1")
    (state / "keyring.json").write_text(json.dumps(ring))
    with pytest.raises(SealedError, match=r"keyring.json does not open"):
        Vault.of(state, identity)


@pytest.mark.parametrize(
    "text", ["", "own:x", "key", "key:", "key:file:", "key:fd:3", "passphrase:x", "Passphrase"]
)
def test_what_names_no_key_is_told(text):
    with pytest.raises(ConfigError, match="names no key"):
        Lock.parse(text)


def test_a_short_passphrase_and_what_is_no_key_are_refused(place):
    state, identity, folder = place
    with pytest.raises(ConfigError, match="16 are needed"):
        exchange(state, identity, Lock("passphrase"), lambda: b"short")
    (folder / "key").write_text("not hexadecimal")
    (folder / "key").chmod(0o600)
    with pytest.raises(ConfigError, match="holds no key") as caught:
        exchange(state, identity, lock_in(folder, "key"))
    assert "not hexadecimal" not in str(caught.value)
    assert not (state / "keyring.json").exists()


def test_keys_are_shown_nowhere(place):
    state, identity, folder = place
    exchange(state, identity, lock_in(folder, "key"))
    keys = Vault.of(state, identity).keys
    assert keys.current.hex() not in repr(keys)
    assert str(keys.current) not in repr(keys)
    with pytest.raises(TypeError):
        keys.__reduce__()


def test_layers_of_before_stay_and_are_named(place):
    state, identity, folder = place
    (state / "own/old.sealed").write_bytes(b"fedllm own layer 1\n" + bytes(60))
    assert exchange(state, identity, lock_in(folder, "key")) == [state / "own/old.sealed"]
    assert all_opens(state, identity)
    assert Keyring(state / "keyring.json", Secrets(b"")).exists
