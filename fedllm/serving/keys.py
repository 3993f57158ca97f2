"""Who may ask which model: keys of several tenants."""

from __future__ import annotations

import hashlib
import hmac
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedllm.config import read_toml
from fedllm.errors import ConfigError

ENVIRONMENT = "FEDLLM_API_KEY"
# A key as `python -c "import secrets; print(secrets.token_urlsafe(32))"` makes it has 43.
_FEWEST_LETTERS = 20
_DIGEST = re.compile(r"[0-9a-f]{64}")
_EVERYBODY = "everybody"


@dataclass(frozen=True)
class Tenant:
    """Somebody with a key.

    Attributes
    ----------
    name : str
        For metrics and the log.
    models : frozenset of str, optional
        Which it may ask; None: all.
    digest : bytes
        SHA-256 of its key.
    oversees : bool
        Whether it sees what is counted of all others.
    """

    name: str
    models: frozenset[str] | None
    digest: bytes = field(repr=False)
    oversees: bool = False

    def may_ask(self, model: str) -> bool:
        """Tell whether a model is one of its."""
        return self.models is None or model in self.models


@dataclass(frozen=True)
class Keys:
    """All tenants; without any, whoever reaches the service may ask everything."""

    tenants: tuple[Tenant, ...] = ()

    @property
    def shared(self) -> bool:
        """Whether several tenants share the service."""
        return len(self.tenants) > 1

    def tenant(self, authorization: str | None) -> Tenant | None:
        """Return whose key a header ``Authorization`` holds (its bytes as Latin-1); None: nobody's.

        Compared with every key, in a time that hangs on none of them.
        """
        if not self.tenants:
            return Tenant(_EVERYBODY, None, b"", oversees=True)
        scheme, _, key = (authorization or "").partition(" ")
        given = hashlib.sha256(key.strip().encode("latin-1", "replace")).digest()
        found = None
        for tenant in self.tenants:
            if hmac.compare_digest(tenant.digest, given):
                found = tenant
        return found if scheme.lower() == "bearer" else None


def read_keys(path: Path | None, key: str | None, models: frozenset[str]) -> Keys:
    """Read the keys' file, and the key of the environment, which opens all models.

    Parameters
    ----------
    path : Path, optional
        TOML; each section is a tenant with ``key``, or ``key_sha256``, and perhaps ``models``.
    key : str, optional
        Of the environment.
    models : frozenset of str
        What is served.

    Raises
    ------
    ConfigError
        If the file is wrong, others can read it, or it names a model that is not served.
    """
    tenants = [] if path is None else _of_file(path, models)
    if key is not None:
        tenants.append(Tenant("environment", None, _digest(key, ENVIRONMENT), oversees=True))
    if len({tenant.digest for tenant in tenants}) < len(tenants):
        raise ConfigError("two tenants have one key", "give each a key of its own")
    return Keys(tuple(tenants))


def _of_file(path: Path, models: frozenset[str]) -> list[Tenant]:
    listed = read_toml(path)
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(
            f"others can read the keys in {path}", f"let its owner alone read it: chmod 600 {path}"
        )
    if not listed:
        raise ConfigError(f"{path} names no tenant", 'write a section such as [ward] with key = ""')
    return [_tenant(path, name, section, models) for name, section in listed.items()]


def _tenant(path: Path, name: str, section: object, models: frozenset[str]) -> Tenant:
    where = f"{path}: [{name}]"
    if not isinstance(section, Mapping) or set(section) - {"key", "key_sha256", "models"}:
        raise ConfigError(f"{where} is no tenant", "give it key (or key_sha256), and models")
    if ("key" in section) == ("key_sha256" in section):
        raise ConfigError(f"{where} has no key, or two", "give it key or key_sha256")
    if "key" in section:
        digest = _digest(section["key"], where)
    else:
        told = section["key_sha256"]
        if not isinstance(told, str) or not _DIGEST.fullmatch(told):
            raise ConfigError(
                f"{where}: key_sha256 is no SHA-256", "give 64 digits from 0 to f, small letters"
            )
        digest = int(told, 16).to_bytes(32, "big")
    allowed = section.get("models")
    if allowed is None:
        return Tenant(name, None, digest)
    if not isinstance(allowed, list) or not set(map(str, allowed)) <= models:
        raise ConfigError(
            f"{where} names a model that is not served; there are: {', '.join(sorted(models))}",
            "name some of these in models, or leave it out for all",
        )
    return Tenant(name, frozenset(map(str, allowed)), digest)


def _digest(key: object, where: str) -> bytes:
    if not isinstance(key, str) or len(key) < _FEWEST_LETTERS or key != key.strip():
        raise ConfigError(
            f"{where}: the key is shorter than {_FEWEST_LETTERS} letters, or has white space "
            "around it",
            'make one: python -c "import secrets; print(secrets.token_urlsafe(32))"',
        )
    if not key.isascii() or not key.isprintable():
        # Clients send no other in a header.
        raise ConfigError(
            f"{where}: the key has letters beyond ASCII",
            'make one: python -c "import secrets; print(secrets.token_urlsafe(32))"',
        )
    return hashlib.sha256(key.encode()).digest()
