"""What the operator's folder knows of its federation: ``federation.json``, without secrets."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer

from fedllm.canonical import from_hex, read_object
from fedllm.config import Section
from fedllm.errors import ConfigError
from fedllm.files import write_bytes
from fedllm.identity.config import FederationConfig
from fedllm.identity.enrolment import Request
from fedllm.identity.roster import Role

_STATE = "federation.json"


def _is_key(text: str) -> str:
    from_hex(text, 32)
    return text


# An Ed25519 public key as 64 hexadecimal digits.
Key = Annotated[str, AfterValidator(_is_key)]


class EnrolledParty(Section):
    """A party that was signed: its public keys, as in its `Request`."""

    role: Role
    name: str
    signing_key: Key
    node_key: str | None
    server_request: str | None
    made_here: bool
    since: datetime
    title: str | None = None

    @model_serializer(mode="wrap")
    def _without_empty_title(self, inner: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # As it was written before there were titles.
        values: dict[str, Any] = inner(self)
        return {key: value for key, value in values.items() if key != "title" or value is not None}

    @classmethod
    def of(cls, request: Request, made_here: bool, now: datetime) -> EnrolledParty:
        """Take over a request that was checked."""
        return cls(
            role=request.role,
            name=request.name,
            signing_key=request.signing_key.hex(),
            node_key=request.node_key.decode() if request.node_key else None,
            server_request=request.server_request.decode() if request.server_request else None,
            made_here=made_here,
            since=now,
            title=request.title,
        )

    @property
    def keys(self) -> tuple[str | None, ...]:
        """Everything that tells one enrolment from another."""
        return self.role, self.signing_key, self.node_key, self.server_request


class Revocation(Section):
    """Keys that are never accepted again."""

    name: str
    signing_key: Key
    node_key: str | None = None
    at: datetime


class FederationState(Section):
    """Everything that ``federation.json`` holds; ``root`` is the root key's public half."""

    config: FederationConfig
    root: Key | None = None
    version: Annotated[int, Field(ge=0)] = 0
    members: tuple[EnrolledParty, ...] = ()
    revoked: tuple[Revocation, ...] = ()

    def member(self, name: str) -> EnrolledParty | None:
        """Return the active party of that name."""
        return next((member for member in self.members if member.name == name), None)

    @property
    def titles(self) -> dict[str, str]:
        """Names of sites for people: the operator's file first, then what sites asked for."""
        asked = {member.name: member.title for member in self.members if member.title}
        return asked | self.config.titles

    def former_keys(self, name: str) -> tuple[bytes, ...]:
        """Return the revoked signing keys of all who had that name."""
        return tuple(from_hex(r.signing_key) for r in self.revoked if r.name == name)

    def with_member(self, member: EnrolledParty) -> FederationState:
        """Return the state with one party more."""
        return self.model_copy(update={"members": (*self.members, member)})

    def without(self, member: EnrolledParty, now: datetime) -> FederationState:
        """Return the state with a party struck off for good."""
        struck = Revocation(
            name=member.name, signing_key=member.signing_key, node_key=member.node_key, at=now
        )
        left = tuple(one for one in self.members if one.name != member.name)
        return self.model_copy(update={"members": left, "revoked": (*self.revoked, struck)})


def has_state(folder: Path) -> bool:
    """Tell whether a folder is an operator's."""
    return (folder / _STATE).exists()


def load_state(folder: Path) -> FederationState:
    """Read ``federation.json``.

    Raises
    ------
    ConfigError
        If the folder is not the operator's, or the file is damaged.
    """
    path = folder / _STATE
    try:
        content = path.read_bytes()
        read_object(content)
        return FederationState.model_validate_json(content)
    except FileNotFoundError:
        raise ConfigError(
            f"{folder} is no operator's folder: it has no {_STATE}",
            f"run: fedllm provision FEDERATION.toml --out {folder}",
        ) from None
    except (OSError, ValueError):
        raise ConfigError(f"{path} is damaged", "restore the folder from its backup") from None


def save_state(folder: Path, state: FederationState) -> None:
    """Write ``federation.json``."""
    content = state.model_dump_json(indent=2).encode() + b"\n"
    write_bytes(folder / _STATE, content, mode=0o600)
