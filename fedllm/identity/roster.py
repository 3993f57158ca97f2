"""The list of a federation's parties and their public keys, signed by its root key."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedllm.canonical import UNREADABLE, from_hex, labelled_json, read_object, reading
from fedllm.errors import PeerError
from fedllm.identity.keys import verify_signature
from fedllm.identity.titles import complaint, shown

Role = Literal["coordinator", "authority", "operator", "site"]
ROLES: tuple[Role, ...] = ("coordinator", "authority", "operator", "site")

# Where a coordinator gives the signed roster to the nodes in it.
ROSTER_PATH = "/v1/fedllm/roster"
_FORMAT = "fedllm.roster.v1"
_SITE_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_FETCH = "fetch it again from the operator"


def is_site_name(name: str) -> bool:
    """Tell whether ``name`` may name a site: lower-case letters, digits, inner hyphens.

    The rule of a DNS label (RFC 1123): such a name is safe in paths, URLs and logs. The names
    of the other roles are taken.
    """
    return _SITE_NAME.fullmatch(name) is not None and name not in ROLES


@dataclass(frozen=True)
class Roster:
    """Who takes part, and the Ed25519 public key (32 bytes) of each.

    A simulation needs ``authority`` and ``sites`` alone. In a deployment the roster is signed
    (`sign_roster`) and carries everything that parties must agree on.

    Attributes
    ----------
    authority : bytes
        Public key of the key authority.
    sites : mapping of str to bytes
        Public key of each active site by its name.
    coordinator, operator : bytes, optional
        Public keys of the coordinator, and of the operator who submits runs.
    node_keys : mapping of str to bytes
        Flower node keys by name (sites and "authority"): PEM of a P-384 public key, exactly
        the bytes that a node is registered with.
    version : int
        Grows with every roster of a federation; 0 for one that was never signed.
    revoked : tuple of bytes
        Signing keys that are never accepted again.
    federation : str
        Name of the federation.
    address : str
        ``host:port`` of the coordinator's public listener.
    authorities_pem : str
        The certificates (PEM) of the private CA; two of them during a roll-over.
    min_cohort : int
        Smallest number of sites whose sum the key authority opens.
    former : mapping of str to tuple of bytes
        For a site that enrolled anew under its name, the keys it had before; all of them are
        revoked. Its new ledger must say what was spent under them.
    titles : mapping of str to str
        Names of sites for people, in any script, for those that have one.
    issued, expires : datetime, optional
        When it was signed, and from when on nobody may rely on it (UTC).
    """

    authority: bytes
    sites: Mapping[str, bytes]
    coordinator: bytes | None = None
    operator: bytes | None = None
    node_keys: Mapping[str, bytes] = field(default_factory=dict)
    version: int = 0
    revoked: tuple[bytes, ...] = ()
    federation: str = ""
    address: str = ""
    authorities_pem: str = ""
    min_cohort: int = 1
    former: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict)
    titles: Mapping[str, str] = field(default_factory=dict)
    issued: datetime | None = None
    expires: datetime | None = None

    def site_key(self, name: str) -> bytes:
        """Return a site's public key.

        Raises
        ------
        PeerError
            If the roster does not know the site.
        """
        try:
            return self.sites[name]
        except KeyError:
            raise PeerError(
                f"'{name}' is not in the roster", "only the federation's operator can add a site"
            ) from None

    def shown(self, name: str) -> str:
        """Return a site's name as people should see it: its title, if it has one, and the name."""
        return shown(name, self.titles)

    def key_of(self, role: Role, name: str) -> bytes | None:
        """Return the public key of a party, or None if the roster does not hold it."""
        if role == "site":
            return self.sites.get(name)
        return {
            "authority": self.authority,
            "coordinator": self.coordinator,
            "operator": self.operator,
        }[role]

    def to_json(self) -> str:
        """Write the roster, unsigned, as JSON with hexadecimal keys."""
        return json.dumps(_to_plain(self), indent=2)

    @classmethod
    def from_json(cls, text: str | bytes) -> Roster:
        """Read what `to_json` wrote.

        Raises
        ------
        PeerError
            If it is damaged.
        """
        with reading(_damaged()):
            return _from_plain(read_object(text))


class Root(Protocol):
    """The federation's root key."""

    def public_bytes(self) -> bytes:
        """Return the 32 bytes of the public key."""
        ...

    def sign(self, message: bytes) -> bytes:
        """Return the Ed25519 signature of ``message``."""
        ...


def sign_roster(roster: Roster, root: Root) -> str:
    """Return the roster as JSON, signed by the federation's root key."""
    plain = _to_plain(roster)
    signature = root.sign(_signed_bytes(plain)).hex()
    return json.dumps({"format": _FORMAT, "signature": signature, "roster": plain}, indent=2) + "\n"


def verify_roster(text: str | bytes, root: bytes) -> Roster:
    """Read a signed roster.

    Whether it is newer than the last one, and not expired, is for the caller to check.

    Parameters
    ----------
    text : str or bytes
        What `sign_roster` returned.
    root : bytes
        The federation's root key that the reader pinned (Ed25519, 32 bytes).

    Raises
    ------
    PeerError
        If it is damaged, of another version of the format, or signed by any other key.
    """
    with reading(_damaged()):
        value = read_object(text)
        plain, kind = value["roster"], value["format"]
        signature = from_hex(value["signature"])
        message = _signed_bytes(plain)
    if kind != _FORMAT:
        raise PeerError("the roster has an unknown format", "install the same version of fedllm")
    verify_signature(root, signature, message, "the federation's root key")
    roster = _from_plain(plain)
    if _to_plain(roster) != plain:
        raise PeerError("the roster has fields that are not known here", "install a newer fedllm")
    _check_signed(roster)
    return roster


def _signed_bytes(plain: dict[str, Any]) -> bytes:
    # One text for one value, whatever the layout of the file.
    return labelled_json(_FORMAT, plain)


def _damaged() -> PeerError:
    return PeerError("the roster is damaged", _FETCH)


def _to_plain(roster: Roster) -> dict[str, Any]:
    def key(value: bytes | None) -> str | None:
        return None if value is None else value.hex()

    def time(value: datetime | None) -> str | None:
        return None if value is None else value.astimezone(UTC).isoformat()

    # Left out where nobody did, so that such rosters stay as they always were.
    former = {name: [one.hex() for one in keys] for name, keys in sorted(roster.former.items())}
    titles = dict(sorted(roster.titles.items()))
    optional = {"former": former, "titles": titles}
    return {name: value for name, value in optional.items() if value} | {
        "federation": roster.federation,
        "version": roster.version,
        "issued": time(roster.issued),
        "expires": time(roster.expires),
        "address": roster.address,
        "min_cohort": roster.min_cohort,
        "authority": roster.authority.hex(),
        "coordinator": key(roster.coordinator),
        "operator": key(roster.operator),
        "sites": {name: value.hex() for name, value in sorted(roster.sites.items())},
        "node_keys": {name: pem.decode() for name, pem in sorted(roster.node_keys.items())},
        "revoked": [value.hex() for value in roster.revoked],
        "authorities_pem": roster.authorities_pem,
    }


def _from_plain(plain: dict[str, Any]) -> Roster:
    with reading(_damaged()):
        roster = Roster(
            authority=from_hex(plain["authority"]),
            sites={str(name): from_hex(key) for name, key in plain["sites"].items()},
            coordinator=_optional_key(plain["coordinator"]),
            operator=_optional_key(plain["operator"]),
            node_keys={str(n): pem.encode() for n, pem in plain["node_keys"].items()},
            version=_whole(plain["version"]),
            revoked=tuple(from_hex(key) for key in plain["revoked"]),
            federation=str(plain["federation"]),
            address=str(plain["address"]),
            authorities_pem=str(plain["authorities_pem"]),
            min_cohort=_whole(plain["min_cohort"]),
            former={
                str(name): tuple(from_hex(key) for key in keys)
                for name, keys in plain.get("former", {}).items()
            },
            titles={str(name): str(title) for name, title in plain.get("titles", {}).items()},
            issued=_time(plain["issued"]),
            expires=_time(plain["expires"]),
        )
    held = (roster.authority, roster.coordinator, roster.operator, *roster.sites.values())
    if any(key is not None and len(key) != 32 for key in (*held, *roster.revoked)):
        raise PeerError("the roster holds a key that is not 32 bytes long", _FETCH)
    return roster


def _optional_key(text: str | None) -> bytes | None:
    return None if text is None else from_hex(text)


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError
    return value


def _time(text: str | None) -> datetime | None:
    if text is None:
        return None
    value = datetime.fromisoformat(text)
    if value.tzinfo is None:
        raise ValueError
    return value


def _check_signed(roster: Roster) -> None:
    """Refuse a signed roster that lacks what a deployment needs, or contradicts itself."""
    bad = [name for name in roster.sites if not is_site_name(name)]
    if bad:
        raise PeerError(f"the roster names a site {bad[0]!r}, which is no valid name", _FETCH)
    if roster.version < 1 or roster.expires is None or not roster.authorities_pem:
        raise PeerError("the roster was made for a simulation, not for a network", _FETCH)
    if set(roster.titles) - set(roster.sites):
        raise PeerError("the roster holds a name for people of an unknown site", _FETCH)
    if words := complaint(roster.titles):
        raise PeerError(f"the roster's names for people: {words}", _FETCH)
    if set(roster.node_keys) - set(roster.sites) - {"authority"}:
        raise PeerError("the roster holds the node key of an unknown party", _FETCH)
    for name, pem in roster.node_keys.items():
        if not is_node_key(pem):
            raise PeerError(f"the roster's node key of '{name}' is not a P-384 key", _FETCH)
    held = [roster.authority, *roster.sites.values()]
    held += [key for key in (roster.coordinator, roster.operator) if key is not None]
    if not {key for keys in roster.former.values() for key in keys} <= set(roster.revoked):
        raise PeerError("the roster names an earlier key that is not revoked", _FETCH)
    nodes = set(roster.node_keys.values())
    if len(nodes) != len(roster.node_keys):
        raise PeerError("the roster holds one node key twice", _FETCH)
    if len(set(held)) != len(held) or set(held) & set(roster.revoked):
        raise PeerError("the roster holds one key twice, or a revoked one", _FETCH)


def is_node_key(pem: bytes) -> bool:
    """Tell whether ``pem`` is the one spelling of a P-384 public key that Flower uses."""
    try:
        key = serialization.load_pem_public_key(pem)
    except UNREADABLE:
        return False
    return (
        isinstance(key, ec.EllipticCurvePublicKey)
        and isinstance(key.curve, ec.SECP384R1)
        and pem
        == key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
