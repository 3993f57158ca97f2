from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from fedllm.errors import ConfigError, PeerError
from fedllm.identity import keys
from fedllm.identity.keys import Identity, verify_signature
from fedllm.identity.roster import Roster


def test_a_saved_identity_is_the_same_and_private(tmp_path: Path) -> None:
    identity = Identity.generate("a")
    folder = tmp_path / "new" / "k"
    identity.save(folder)
    again = Identity.load("a", folder)
    assert again.public_bytes() == identity.public_bytes()
    assert again.derive("x") == identity.derive("x") != identity.derive("y")
    assert {p.stat().st_mode & 0o777 for p in folder.iterdir()} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700


def test_signatures_bind_message_and_signer() -> None:
    one, two = Identity.generate("one"), Identity.generate("two")
    signature = one.sign(b"m")
    verify_signature(one.public_bytes(), signature, b"m", "one")
    bad = bytes([signature[0] ^ 1]) + signature[1:]
    for key, sig, message in [
        (two.public_bytes(), signature, b"m"),
        (one.public_bytes(), signature, b"n"),
        (one.public_bytes(), bad, b"m"),
        (one.public_bytes(), b"", b"m"),
        (b"short", signature, b"m"),
    ]:
        with pytest.raises(PeerError):
            verify_signature(key, sig, message, "one")


@pytest.mark.parametrize("length", [10, 10_000])
def test_a_signature_that_fitted_before_fits_nothing_else(length: int) -> None:
    """Of short messages it is known; of long ones, an update, nothing is."""
    signer, other, message = Identity.generate("a"), Identity.generate("b"), b"m" * length
    signature = signer.sign(message)
    known = keys._known.cache_info().hits
    for _ in range(2):
        verify_signature(signer.public_bytes(), signature, message, "a")
        for wrong in (
            (other.public_bytes(), signature, message),
            (signer.public_bytes(), other.sign(message), message),
            (signer.public_bytes(), signature, message[:-1] + b"n"),
            (signer.public_bytes(), signature, message + b"m"),
        ):
            with pytest.raises(PeerError, match="does not fit"):
                verify_signature(*wrong, "a")
    assert keys._known.cache_info().hits - known == (1 if length == 10 else 0)


def test_mask_keys_differ_between_runs_and_ledgers() -> None:
    identity = Identity.generate("a")
    keys = [
        identity.mask_key(run, ledger).private_bytes_raw()
        for run, ledger in (("r1", "l1"), ("r1", "l1"), ("r2", "l1"), ("r1", "l2"))
    ]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def test_secrets_do_not_show(tmp_path: Path) -> None:
    identity = Identity.generate("a")
    assert repr(identity) == "Identity('a', <hidden>)"
    with pytest.raises(TypeError):
        pickle.dumps(identity)
    identity.save(tmp_path)
    secret = (tmp_path / "secret.bin").read_bytes()
    (tmp_path / "signing.pem").write_bytes(b"-----BEGIN garbage")
    with pytest.raises(ConfigError) as caught:
        Identity.load("a", tmp_path)
    assert secret.hex() not in str(caught.value)
    assert caught.value.__cause__ is None


def test_roster_round_trip_and_damage() -> None:
    roster = Roster(b"a" * 32, {"s": b"b" * 32})
    assert Roster.from_json(roster.to_json()) == roster
    with pytest.raises(PeerError, match="not in the roster"):
        roster.site_key("other")
    for text in ("", "{}", '{"authority": "00", "sites": {}}', '{"authority": 1, "sites": []}'):
        with pytest.raises(PeerError):
            Roster.from_json(text)
