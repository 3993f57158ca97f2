"""The keys under which files are sealed, and what opens them: ``keyring.json``.

Files are sealed with a random key of the ring. The ring itself is sealed once for each lock that
opens it: the party's own secret, a key in a file or the environment, or a passphrase. While keys
are being changed it has two locks, the old and the new, and each opens both keys.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from fedllm.at_rest.sources import nobody, read_secret
from fedllm.at_rest.stream import KEY_BYTES, About, SealedError, seal_bytes, unseal_bytes
from fedllm.canonical import from_hex, read_object, reading, signing_bytes
from fedllm.errors import ConfigError
from fedllm.files import write_bytes, write_json

Kind = Literal["own", "key", "passphrase"]
# Asks whoever sits at the terminal for a passphrase; None where nobody does.
Ask = Callable[[], bytes | None]

FORMAT = "fedllm.keyring.v1"
# Names another place of the secret than the ring does, for whoever starts a service.
PLACE_VARIABLE = "FEDLLM_KIT_KEY_FROM"
MIN_PASSPHRASE = 16
_MOST_SLOTS, _MOST_KEYS = 4, 16
# 128 MiB, less than a second; Percival and Josefsson 2016 (RFC 7914).
_SCRYPT_LOG_N, _SCRYPT_R, _SCRYPT_P = 17, 8, 1
_SALT_BYTES = 32


@dataclass(frozen=True)
class Lock:
    """What opens a ring.

    Attributes
    ----------
    kind : {"own", "key", "passphrase"}
        The party's own secret, 32 bytes of a key in hexadecimal digits, or a passphrase.
    place : str
        Where key or passphrase stands ("file:PATH", "env:NAME"); empty: it is asked for.
    """

    kind: Kind
    place: str = ""

    def __str__(self) -> str:
        words = {"own": "the kit's own secret", "key": "a key", "passphrase": "a passphrase"}
        return f"{words[self.kind]} in {self.place}" if self.place else words[self.kind]

    @classmethod
    def parse(cls, text: str) -> Lock:
        """Read ``own``, ``key:PLACE``, ``passphrase`` or ``passphrase:PLACE``.

        Raises
        ------
        ConfigError
            If it is none of these.
        """
        kind, _, place = text.partition(":")
        known = place.startswith(("file:", "env:")) and place.partition(":")[2] != ""
        if (kind == "key" and known) or (kind == "passphrase" and (known or not place)):
            return cls(kind, _absolute(place))  # type: ignore[arg-type]
        if text == "own":
            return cls("own")
        raise ConfigError(
            f"'{text}' names no key",
            "write own, key:file:PATH, key:env:NAME, passphrase, passphrase:file:PATH or "
            "passphrase:env:NAME",
        )


@dataclass(frozen=True)
class Keys:
    """The keys of a ring; what is sealed now is sealed with the first.

    Attributes
    ----------
    all : tuple of bytes
        32 bytes each, the newest first.
    lock : Lock
        What opened the ring.
    """

    all: tuple[bytes, ...] = field(repr=False)
    lock: Lock

    @property
    def current(self) -> bytes:
        """The key to seal with."""
        return self.all[0]

    def __reduce__(self) -> NoReturn:
        raise TypeError("keys must not be copied between processes")


class Secrets:
    """Gives the secret of a lock, asking for a passphrase at most once.

    Parameters
    ----------
    own : bytes
        The party's own secret for this, 32 bytes.
    ask : callable, optional
        Asks for the passphrase that opens the ring.
    """

    def __init__(self, own: bytes, ask: Ask = nobody) -> None:
        self._own = own
        self._ask = ask
        self._typed: bytes | None = None

    def of(self, lock: Lock) -> bytes:
        """Return a lock's secret.

        Raises
        ------
        ConfigError
            If it is not where it should be, or is none.
        """
        if lock.kind == "own":
            return self._own
        if lock.kind == "key":
            return _key_in(read_secret(lock.place, "key", keep=True), lock)
        if lock.place:
            # Kept, as the key: a service starts more than one process that reads it.
            return read_secret(lock.place, keep=True)
        self._typed = self._typed or self._ask()
        if self._typed is None:
            raise ConfigError(
                "the kit's files are sealed under a passphrase, and nobody can be asked",
                f"name its place: {PLACE_VARIABLE}=file:PATH or env:NAME in the environment",
            )
        return self._typed


class Keyring:
    """One ``keyring.json``.

    Parameters
    ----------
    path : Path
        The file; without one, everything is sealed with the party's own secret.
    secrets : Secrets
        What opens it.
    """

    def __init__(self, path: Path, secrets: Secrets) -> None:
        self._path = path
        self._secrets = secrets

    @property
    def exists(self) -> bool:
        """Whether keys were ever chosen."""
        return self._path.exists()

    def state(self) -> bytes:
        """Return what tells whether somebody changed the ring; empty without one."""
        return self._path.read_bytes() if self.exists else b""

    def open(self) -> Keys:
        """Return the keys.

        Raises
        ------
        SealedError
            If no lock opens it.
        ConfigError
            If it is damaged, or the secret is not where it should be.
        """
        if not self.exists:
            own = Lock("own")
            return Keys((self._secrets.of(own),), own)
        slots = self._slots()
        missing: ConfigError | None = None
        for slot in slots:
            try:
                secret = self._secrets.of(elsewhere(slot.lock))
                return Keys(self._opened(slot, secret), slot.lock)
            except SealedError:
                continue
            except ConfigError as error:
                missing = missing or error
        raise missing or self._about().does_not_open()

    def begin(self, lock: Lock, secret: bytes) -> Keys:
        """Add a new key and its lock beside the old; return the keys, the new one first.

        The old lock stays until `finish`. An exchange under the same new lock that was cut off goes
        on with its key.

        Raises
        ------
        SealedError, ConfigError
            As `open`.
        """
        slots = self._slots() if self.exists else []
        if len(slots) > 1 and slots[0].lock == lock:
            try:
                return Keys(self._opened(slots[0], secret), lock)
            except SealedError:
                # Another secret in the same place: from here on it is an exchange of its own.
                pass
        keys = self.open()
        together = (os.urandom(KEY_BYTES), *keys.all)
        old = self._secrets.of(elsewhere(keys.lock))
        self._write([(lock, secret), (keys.lock, old)], together)
        return Keys(together, lock)

    def finish(self, keys: Keys, secret: bytes) -> None:
        """Forget all keys and locks but the new ones; nothing may be sealed under another."""
        self._write([(keys.lock, secret)], (keys.current,))

    def _write(self, locks: list[tuple[Lock, bytes]], keys: tuple[bytes, ...]) -> None:
        if len(keys) > _MOST_KEYS:
            raise ConfigError(
                f"{len(keys)} exchanges of keys were cut off",
                "repeat the last one until it is finished, before another",
            )
        slots = [_sealed(lock, secret, keys, self._about()) for lock, secret in locks]
        write_json(self._path, {"format": FORMAT, "slots": slots})
        self._path.chmod(0o600)

    def _opened(self, slot: _Slot, secret: bytes) -> tuple[bytes, ...]:
        wrapping = _wrapping(slot.lock, secret, slot.salt, slot.log_n)
        found = unseal_bytes(slot.box, [wrapping], self._about())
        if not found or len(found) % KEY_BYTES:
            raise self._about().does_not_open()
        return tuple(found[i : i + KEY_BYTES] for i in range(0, len(found), KEY_BYTES))

    def _about(self) -> About:
        return About("keyring", self._path.name)

    def _slots(self) -> list[_Slot]:
        damaged = ConfigError(f"{self._path} is damaged", "restore it from its backup")
        with reading(damaged):
            try:
                value = read_object(self._path.read_bytes())
            except OSError:
                raise damaged from None
            if set(value) != {"format", "slots"} or value["format"] != FORMAT:
                raise ValueError("another format")
            slots = [_read_slot(said) for said in value["slots"]]
            if not 0 < len(slots) <= _MOST_SLOTS:
                raise ValueError("no slots")
        return slots


@dataclass(frozen=True)
class _Slot:
    lock: Lock
    salt: bytes
    log_n: int
    box: bytes


def _read_slot(said: dict[str, Any]) -> _Slot:
    kind, place, log_n = said["kind"], said["place"], said["scrypt_log_n"]
    if kind not in get_args(Kind) or not isinstance(place, str) or len(said) != 5:
        raise ValueError("no lock")
    # More would take a machine's memory.
    if type(log_n) is not int or not 0 <= log_n <= 20:
        raise ValueError("no work")
    return _Slot(
        Lock(kind, place), from_hex(said["salt"], _SALT_BYTES), log_n, from_hex(said["box"])
    )


def _sealed(lock: Lock, secret: bytes, keys: tuple[bytes, ...], about: About) -> dict[str, Any]:
    salt = os.urandom(_SALT_BYTES)
    log_n = _SCRYPT_LOG_N if lock.kind == "passphrase" else 0
    box = seal_bytes(b"".join(keys), _wrapping(lock, secret, salt, log_n), about)
    return {
        "kind": lock.kind,
        "place": lock.place,
        "salt": salt.hex(),
        "scrypt_log_n": log_n,
        "box": box.hex(),
    }


def _wrapping(lock: Lock, secret: bytes, salt: bytes, log_n: int) -> bytes:
    if lock.kind == "passphrase":
        return Scrypt(salt, KEY_BYTES, 1 << log_n, _SCRYPT_R, _SCRYPT_P).derive(secret)
    info = signing_bytes(FORMAT, lock.kind)
    return HKDF(hashes.SHA256(), KEY_BYTES, salt, info).derive(secret)


def elsewhere(lock: Lock) -> Lock:
    """Return a lock with its secret where the environment says that it stands now."""
    place = os.environ.get(PLACE_VARIABLE, "")
    return Lock(lock.kind, place) if place and lock.kind != "own" else lock


def new_secret(lock: Lock, secrets: Secrets) -> bytes:
    """Return a new lock's secret, if it is long enough; a key's file is made where there is none.

    ``secrets`` asks for the new passphrase.

    Raises
    ------
    ConfigError
        If it is not there, or too short.
    """
    path = Path(lock.place.removeprefix("file:"))
    if lock.kind == "key" and lock.place.startswith("file:") and not path.exists():
        write_bytes(path, os.urandom(KEY_BYTES).hex().encode() + b"\n", mode=0o600)
    secret = secrets.of(lock)
    if lock.kind == "passphrase" and len(secret) < MIN_PASSPHRASE:
        raise ConfigError(
            f"the passphrase has {len(secret)} characters; {MIN_PASSPHRASE} are needed",
            "take five or six words at random, for example from a password manager",
        )
    return secret


def _key_in(content: bytes, lock: Lock) -> bytes:
    try:
        return from_hex(content.decode("ascii").strip(), KEY_BYTES)
    except ValueError:
        raise ConfigError(
            f"{lock.place} holds no key",
            "put 64 hexadecimal digits there, at random: openssl rand -hex 32",
        ) from None


def _absolute(place: str) -> str:
    kind, _, path = place.partition(":")
    return f"file:{Path(path).absolute()}" if kind == "file" else place
