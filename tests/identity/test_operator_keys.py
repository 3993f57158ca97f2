"""The root key and the CA's keys on disk, with and without a passphrase."""

from __future__ import annotations

import pickle
import shutil
import subprocess
from datetime import UTC, datetime

import pytest
from support.kits import federation_config, make_federation

from fedllm.errors import ConfigError
from fedllm.identity import operator_keys
from fedllm.identity.enrolment import enroll
from fedllm.identity.operator_keys import (
    add_ca,
    check_passphrase,
    is_protected,
    load_root,
    make_root,
)
from fedllm.identity.provisioning import (
    change_passphrase,
    inspect,
    provision,
    renew,
    revoke,
    sign,
)

GOOD, OTHER = b"five words nobody else took", b"another one that is as long"


@pytest.fixture
def folder(tmp_path):
    provision(federation_config(), tmp_path / "fed", passphrase=GOOD)
    return tmp_path / "fed"


def secrets(folder):
    return [folder / "root" / "signing.pem", *sorted((folder / "ca").glob("*.key"))]


def test_all_secrets_of_the_folder_lie_under_the_passphrase(folder):
    renew(folder, new_ca=True, passphrase=GOOD)
    assert len(secrets(folder)) == 3
    for path in secrets(folder):
        assert path.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
        assert path.stat().st_mode & 0o777 == 0o600
    if not shutil.which("openssl"):
        pytest.skip("the openssl command is not installed")
    # A person with the passphrase can open them without this program.
    command = ["openssl", "pkey", "-in", secrets(folder)[0], "-noout", "-passin"]
    assert subprocess.run([*command, f"pass:{GOOD.decode()}"], check=False).returncode == 0
    wrong = subprocess.run([*command, "pass:wrong"], check=False, capture_output=True)
    assert wrong.returncode != 0


def test_every_step_asks_for_it_and_showing_does_not(folder, tmp_path):
    request = enroll(tmp_path / "carl", "site", "carl")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    steps = (
        lambda secret: sign(folder, request, passphrase=secret),
        lambda secret: provision(federation_config(sites=["anne"]), folder, passphrase=secret),
        lambda secret: revoke(folder, "anne", passphrase=secret),
        lambda secret: renew(folder, passphrase=secret),
    )
    for step in steps:
        for secret, words in ((None, "protected by a passphrase"), (OTHER, "does not open")):
            with pytest.raises(ConfigError, match=words) as caught:
                step(secret)
            assert caught.value.remedy
            assert OTHER.decode() not in str(caught.value)
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert after == before
    assert inspect(folder).roster.version == 1
    for step in steps:
        step(GOOD)


def test_the_passphrase_can_be_set_changed_and_removed(tmp_path):
    root = make_federation(tmp_path / "fed").root
    folder = tmp_path / "fed"
    for old, new in ((None, GOOD), (GOOD, OTHER), (OTHER, None), (None, None)):
        change_passphrase(folder, old, new)
        assert load_root(folder, new).public_bytes() == root == inspect(folder).root
        assert operator_keys.is_protected(folder) == (new is not None)
        renew(folder, passphrase=new)
    with pytest.raises(ConfigError, match=r"has 5 characters; 16 are needed"):
        change_passphrase(folder, None, b"short")
    with pytest.raises(ConfigError, match="needed"):
        provision(federation_config(), tmp_path / "new", passphrase=b"short")


@pytest.mark.parametrize("dies", [1, 2, 3])
def test_a_change_that_a_crash_cut_off_is_finished(folder, monkeypatch, dies):
    renew(folder, new_ca=True, passphrase=GOOD)
    write, writes = operator_keys.write_bytes, []

    def dying(path, content, mode=0o644):
        writes.append(path)
        if len(writes) == dies:
            raise KeyboardInterrupt
        write(path, content, mode)

    monkeypatch.setattr(operator_keys, "write_bytes", dying)
    with pytest.raises(KeyboardInterrupt):
        change_passphrase(folder, GOOD, OTHER)
    monkeypatch.undo()
    load_root(folder, GOOD)
    change_passphrase(folder, GOOD, OTHER)
    renew(folder, passphrase=OTHER)


def test_a_root_key_of_another_folder_is_noticed(folder, tmp_path):
    provision(federation_config(), tmp_path / "other", passphrase=GOOD)
    path = folder / "root" / "signing.pem"
    path.write_bytes((tmp_path / "other" / "root" / "signing.pem").read_bytes())
    with pytest.raises(ConfigError, match="not the federation's"):
        renew(folder, passphrase=GOOD)


def test_the_root_key_is_neither_shown_nor_copied(folder):
    keys = operator_keys.OperatorKeys.of(folder, GOOD, None)
    assert GOOD.decode() not in repr(keys)
    assert "hidden" in repr(keys)
    with pytest.raises(TypeError):
        pickle.dumps(keys.root)


def test_a_folder_without_a_ca_is_named(folder):
    assert len(operator_keys.ca_certificates(folder)) == 1
    shutil.rmtree(folder / "ca")
    with pytest.raises(ConfigError, match="holds no CA") as caught:
        operator_keys.ca_certificates(folder)
    assert "backup" in caught.value.remedy


def test_a_certificate_that_is_no_ca_is_not_taken_for_one(folder):
    (path,) = (folder / "ca").glob("*.pem")
    path.write_bytes((folder / "server.pem").read_bytes())
    with pytest.raises(ConfigError, match="not the certificate of a federation's CA"):
        operator_keys.ca_certificates(folder)


def test_a_root_key_is_made_where_a_crash_left_its_folder(tmp_path):
    (tmp_path / "root").mkdir(mode=0o700)
    make_root(tmp_path, None)
    assert not is_protected(tmp_path)


def test_the_newest_ca_signs_and_generations_are_numbers(tmp_path):
    """The tenth comes after the ninth, whatever their names sort like."""
    now = datetime.now(UTC)
    assert not operator_keys.has_ca(tmp_path)
    assert not operator_keys.has_root(tmp_path)
    make_root(tmp_path, None)
    for days in range(1, 12):
        add_ca(tmp_path, federation_config(ca_validity_days=800 + days), now, None)
    keys = operator_keys.OperatorKeys.of(tmp_path, None, None)
    found = operator_keys.ca_certificates(tmp_path)
    lasts = [certificate.not_valid_after_utc for certificate in found]
    assert len(lasts) == 11
    assert lasts == sorted(lasts)
    certificate, key = keys.issuing_ca()
    assert certificate == found[-1]
    assert key.public_key().public_numbers() == certificate.public_key().public_numbers()
    assert {path.name for path in (tmp_path / "ca").iterdir()} == {
        f"ca-{number}.{kind}" for number in range(1, 12) for kind in ("key", "pem")
    }
    # What a crash left of an old one is no obstacle.
    (tmp_path / "ca" / "ca-3.key").unlink()
    operator_keys.drop_old_cas(tmp_path)
    assert {path.name for path in (tmp_path / "ca").iterdir()} == {"ca-11.key", "ca-11.pem"}
    assert operator_keys.has_ca(tmp_path)
    assert operator_keys.has_root(tmp_path)


def test_a_passphrase_is_changed_where_a_key_of_an_old_ca_is_gone(folder):
    renew(folder, new_ca=True, passphrase=GOOD)
    (folder / "ca" / "ca-1.key").unlink()
    change_passphrase(folder, GOOD, OTHER)
    assert load_root(folder, OTHER)


def test_a_passphrase_of_sixteen_characters_is_enough(tmp_path):
    check_passphrase(None)
    check_passphrase(b"x" * 16)
    with pytest.raises(ConfigError, match="has 15 characters; 16 are needed"):
        check_passphrase(b"x" * 15)


def test_the_folders_of_secrets_are_the_operators_alone(folder):
    for name in ("root", "ca"):
        assert (folder / name).stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("secret", "words"), [(None, "cannot be read"), (GOOD, "the passphrase does not open")]
)
def test_a_damaged_key_is_told_as_one(tmp_path, secret, words):
    make_root(tmp_path, secret)
    (path,) = secrets(tmp_path)
    first, *_, last = path.read_text().splitlines()
    path.write_text(f"{first}\nAAAA\n{last}\n")
    with pytest.raises(ConfigError, match=words):
        load_root(tmp_path, secret)
