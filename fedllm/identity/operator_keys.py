"""The secrets of the operator's folder: the root key and the CA's keys, under a passphrase.

DIR/root/signing.pem   Ed25519, signs rosters
DIR/ca/ca-N.pem, .key  the private CA, one pair of files for each generation

Keys are PKCS #8 (RFC 5958). With a passphrase they are encrypted as ``cryptography`` does it
best: PBES2 with AES-256 and PBKDF2-HMAC-SHA-256 (RFC 8018). Its 2048 iterations slow nobody
down, so the passphrase itself must be long.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import NoReturn

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from fedllm.canonical import UNREADABLE
from fedllm.errors import ConfigError
from fedllm.files import write_bytes
from fedllm.identity import certificates
from fedllm.identity.config import FederationConfig

MIN_PASSPHRASE = 16
_ENCRYPTED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"


class RootKey:
    """The federation's root key; it signs, and is never shown in ``repr`` nor pickled."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    def public_bytes(self) -> bytes:
        """Return the 32 bytes of the public key."""
        return self._key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte Ed25519 signature of ``message``."""
        return self._key.sign(message)

    def __repr__(self) -> str:
        return "RootKey(<hidden>)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("the root key must not be copied between processes")


@dataclass(frozen=True)
class OperatorKeys:
    """The keys of an operator's folder, opened for one step.

    Attributes
    ----------
    folder : Path
        The operator's.
    root : RootKey
        The federation's.
    passphrase : bytes, optional
        Opens the CA's keys as well, when a certificate is made.
    """

    folder: Path
    root: RootKey
    passphrase: bytes | None = field(repr=False)

    @classmethod
    def of(cls, folder: Path, passphrase: bytes | None, known: str | None) -> OperatorKeys:
        """Open the keys; ``known`` is the root key's public half in hexadecimal.

        Raises
        ------
        ConfigError
            As `load_root`, or if the root key is not the one that is known.
        """
        root = load_root(folder, passphrase)
        if known is not None and root.public_bytes().hex() != known:
            raise ConfigError(
                f"the root key in {folder} is not the federation's",
                "restore the whole folder from one backup",
            )
        return cls(folder, root, passphrase)

    def issuing_ca(self) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        """Return the newest CA with its key; errors as in `load_root`."""
        certificate = ca_certificates(self.folder)[-1]
        path = _ca_files(self.folder)[-1].with_suffix(".key")
        key = _open(path, self.passphrase)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ConfigError(f"{path} is no elliptic-curve key", "restore it from its backup")
        return certificate, key


def check_passphrase(passphrase: bytes | None) -> None:
    """Check that a new passphrase is long enough; None means none.

    Raises
    ------
    ConfigError
        If it is too short.
    """
    if passphrase is not None and len(passphrase) < MIN_PASSPHRASE:
        raise ConfigError(
            f"the passphrase has {len(passphrase)} characters; {MIN_PASSPHRASE} are needed",
            "take five or six words at random, for example from a password manager",
        )


def has_root(folder: Path) -> bool:
    """Tell whether the operator's folder holds a root key."""
    return _root_path(folder).exists()


def is_protected(folder: Path) -> bool:
    """Tell whether the root key lies under a passphrase.

    Raises
    ------
    ConfigError
        If there is none, or it cannot be read.
    """
    return _read(_root_path(folder)).startswith(_ENCRYPTED)


def make_root(folder: Path, passphrase: bytes | None) -> None:
    """Make the root key."""
    check_passphrase(passphrase)
    (folder / "root").mkdir(exist_ok=True, mode=0o700)
    _write(_root_path(folder), Ed25519PrivateKey.generate(), passphrase)


def load_root(folder: Path, passphrase: bytes | None = None) -> RootKey:
    """Read the root key.

    Raises
    ------
    ConfigError
        If it is missing or damaged, or the passphrase is missing or does not open it.
    """
    key = _open(_root_path(folder), passphrase)
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{_root_path(folder)} is no root key", "restore it from its backup")
    return RootKey(key)


def change_passphrase(folder: Path, old: bytes | None, new: bytes | None) -> None:
    """Put root key and CA keys under another passphrase; None for none.

    Cut off by a crash, it is finished by calling it again: a key that opens with the new one
    already stays as it is.

    Raises
    ------
    ConfigError
        If a key does not open with either, or the new one is too short.
    """
    check_passphrase(new)
    # The root key last: as long as it opens with the old one, so does the whole folder.
    keys = [path.with_suffix(".key") for path in _ca_files(folder)]
    for path in [*filter(Path.exists, keys), _root_path(folder)]:
        if _read(path).startswith(_ENCRYPTED) == (new is not None):
            try:
                _open(path, new)
                continue
            except ConfigError:
                pass
        _write(path, _open(path, old), new)


def ca_certificates(folder: Path) -> list[x509.Certificate]:
    """Return the certificates of all CAs that are trusted, the oldest first.

    Raises
    ------
    ConfigError
        If there is none, or one is damaged.
    """
    found = []
    for path in _ca_files(folder):
        certificate = certificates.read_certificates(path.read_bytes(), str(path))[0]
        certificates.check_authority(certificate, str(path))
        found.append(certificate)
    if not found:
        raise ConfigError(f"{folder / 'ca'} holds no CA", "restore the folder from its backup")
    return found


def has_ca(folder: Path) -> bool:
    """Tell whether the operator's folder holds a CA."""
    return bool(_ca_files(folder))


def add_ca(folder: Path, config: FederationConfig, now: datetime, passphrase: bytes | None) -> None:
    """Make a new generation of the private CA."""
    files = _ca_files(folder)
    number = 1 + (_generation(files[-1]) if files else 0)
    (folder / "ca").mkdir(exist_ok=True, mode=0o700)
    key = certificates.new_tls_key()
    certificate = certificates.make_authority(config.name, key, now, config.ca_validity_days)
    path = folder / "ca" / f"ca-{number}"
    _write(path.with_suffix(".key"), key, passphrase)
    # The certificate last: only a CA with both files counts.
    write_bytes(path.with_suffix(".pem"), certificates.pem(certificate).encode())


def drop_old_cas(folder: Path) -> None:
    """Forget all generations of the CA but the newest."""
    for path in _ca_files(folder)[:-1]:
        # The key first: what a crash leaves behind signs nothing.
        path.with_suffix(".key").unlink(missing_ok=True)
        path.unlink()


def _root_path(folder: Path) -> Path:
    return folder / "root" / "signing.pem"


def _ca_files(folder: Path) -> list[Path]:
    return sorted((folder / "ca").glob("ca-*.pem"), key=_generation)


def _generation(path: Path) -> int:
    return int(path.stem.removeprefix("ca-"))


def _write(path: Path, key: PrivateKeyTypes, passphrase: bytes | None) -> None:
    encryption = (
        serialization.BestAvailableEncryption(passphrase)
        if passphrase is not None
        else serialization.NoEncryption()
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )
    write_bytes(path, pem, mode=0o600)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _damaged(path, type(error).__name__) from None


def _open(path: Path, passphrase: bytes | None) -> PrivateKeyTypes:
    content = _read(path)
    protected = content.startswith(_ENCRYPTED)
    if protected and passphrase is None:
        raise ConfigError(
            f"{path} is protected by a passphrase",
            "run the command on a terminal, or name the passphrase with --passphrase-from",
        )
    try:
        return serialization.load_pem_private_key(content, passphrase if protected else None)
    except UNREADABLE as error:
        if protected:
            raise ConfigError(
                f"the passphrase does not open {path}, or the file is damaged",
                "try again, minding capitals and spaces; without the passphrase nobody can be "
                "added, renewed or revoked",
            ) from None
        raise _damaged(path, type(error).__name__) from None


def _damaged(path: Path, kind: str) -> ConfigError:
    return ConfigError(
        f"the key {path} cannot be read ({kind})", "restore the folder from its backup"
    )
