"""A party's kit: the one folder with its keys, the roster and what it needs of TLS."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedllm.canonical import UNREADABLE, from_hex
from fedllm.errors import ConfigError, PeerError, RefusedError
from fedllm.files import write_bytes
from fedllm.identity import certificates
from fedllm.identity.certificates import current_time
from fedllm.identity.keys import Identity
from fedllm.identity.kit_folder import (
    check_permissions,
    locked,
    read_description,
    write_description,
)
from fedllm.identity.roster import Role, Roster, verify_roster


@dataclass(frozen=True)
class Kit:
    """Everything one party needs to take part, read and checked by `read_kit`.

    Attributes
    ----------
    folder : Path
        Where it lies; only its owner can read it.
    role, name, federation : str
        Who the party is, and in which federation.
    address : str
        ``host:port`` of the coordinator's public TLS listener.
    root : bytes
        The federation's root key (Ed25519, 32 bytes) that this party pinned.
    ca_certificate : Path
        PEM of the federation's private CA; the only one to trust for TLS.
    identity : Identity
        The party's own keys.
    roster : Roster
        Verified against ``root``, not expired, never older than one seen before.
    server_certificate, server_key : Path, optional
        TLS of the coordinator.
    node_key : Path, optional
        The P-384 key (OpenSSH format) of a site's or the authority's Flower node.
    """

    folder: Path
    role: Role
    name: str
    federation: str
    address: str
    root: bytes
    ca_certificate: Path
    identity: Identity
    roster: Roster
    server_certificate: Path | None
    server_key: Path | None
    node_key: Path | None

    def install_roster(self, text: str) -> Kit:
        """Return this kit with a newer signed roster, once that is on disk.

        A roster of the version that is installed already changes nothing.

        Raises
        ------
        PeerError
            If it is damaged, or not signed by the pinned root key.
        RefusedError
            If it is older than the installed one, expired, or no longer lists this party.
        """
        roster = update_roster(self.folder, text)
        return replace(self, roster=roster, address=roster.address)


def read_kit(folder: Path, role: Role) -> Kit:
    """Read and check a kit.

    Raises
    ------
    ConfigError
        If the folder is no finished kit of that role, others can read it, a file is missing
        or damaged, or a certificate or the roster has expired; says what to do.
    """
    description = read_description(folder)
    name = description["name"]
    if description["role"] != role:
        raise ConfigError(
            f"{folder} is the kit of the {_spoken(description['role'], name)}, not of a {role}",
            f"give the {role}'s kit with --kit",
        )
    check_permissions(folder)
    identity = Identity.load(name, folder / "keys")
    if description["root"] is None:
        raise _incomplete(folder, role)
    with locked(folder):
        # Once more: another process may just have installed a roster.
        description = read_description(folder)
        roster = _installed_roster(folder, description)
        if roster.version > description["roster_version"]:
            _make_current(folder, description, roster)
        _check_ca(folder, roster)
    check_membership(roster, role, name, identity, folder)
    server = role == "coordinator"
    node = role in ("site", "authority")
    if server:
        _check_server(folder, roster)
    if node and node_public_key(folder / "node.key") != roster.node_keys.get(name):
        raise ConfigError(
            f"{folder / 'node.key'} is not the node key of '{name}' in the roster",
            "restore the kit from its backup, or enroll again",
        )
    return Kit(
        folder=folder,
        role=role,
        name=name,
        federation=roster.federation,
        address=roster.address,
        root=from_hex(description["root"]),
        ca_certificate=folder / "ca.pem",
        identity=identity,
        roster=roster,
        server_certificate=folder / "server.pem" if server else None,
        server_key=folder / "server.key" if server else None,
        node_key=folder / "node.key" if node else None,
    )


def _incomplete(folder: Path, role: Role) -> ConfigError:
    group = {"site": "client", "coordinator": "server"}.get(role, role)
    return ConfigError(
        f"the kit {folder} is not complete: the operator has not answered its request",
        f"send {folder / 'request.json'} to the federation's operator and install the answer: "
        f"fedllm {group} accept ANSWER --kit {folder}",
    )


def update_roster(folder: Path, text: str) -> Roster:
    """Install a newer signed roster in a kit, even in one whose own roster has expired.

    Raises
    ------
    PeerError, RefusedError
        As `Kit.install_roster` says.
    ConfigError
        If the folder is no kit, or its request was not answered yet.
    """
    read_description(folder)
    with locked(folder):
        description = read_description(folder)
        check_permissions(folder)
        if description["root"] is None:
            raise _incomplete(folder, description["role"])
        identity = Identity.load(description["name"], folder / "keys")
        return install_roster(folder, description, text, identity)


def install_roster(
    folder: Path, description: dict[str, Any], text: str, identity: Identity
) -> Roster:
    """Verify a signed roster under the pinned root, and make it the kit's; see `Kit`.

    The caller holds `locked`, and read ``description`` under it.
    """
    roster = verify_roster(text, from_hex(description["root"]))
    before = _roster_before(folder, description)
    seen = max(description["roster_version"], before.version if before else 0)
    if roster.version < seen:
        raise RefusedError(
            f"the roster has version {roster.version}, and this kit has seen version {seen}",
            "an older roster may name parties that were revoked; ask the operator for the newest",
        )
    if description["federation"] not in (None, roster.federation):
        raise RefusedError(
            f"the roster is of the federation '{roster.federation}', "
            f"and this kit of '{description['federation']}'",
            "use the roster of the right federation",
        )
    try:
        check_dates(roster, "the new roster")
        _check_authorities(roster, "the CA in the new roster")
        check_membership(roster, description["role"], description["name"], identity, folder)
    except ConfigError as error:
        raise RefusedError(error.message, error.remedy) from None
    if before is not None and roster.version == before.version and roster != before:
        raise PeerError(
            f"two different rosters have version {roster.version}: the root key signed both",
            "stop, and ask the operator; the root key may be in other hands",
        )
    if before is not None and not set(before.revoked) <= set(roster.revoked):
        raise RefusedError(
            f"the roster (version {roster.version}) no longer revokes a key that version "
            f"{before.version} revoked",
            "the operator's folder was restored from an old backup, or the root key is in other "
            "hands: call the operator, and go on with the roster that is installed",
        )
    # The roster first and the version last: `read_kit` finishes what a crash cuts off.
    write_bytes(folder / "roster.json", text.encode(), mode=0o600)
    _make_current(folder, description, roster)
    return roster


def _make_current(folder: Path, description: dict[str, Any], roster: Roster) -> None:
    write_bytes(folder / "ca.pem", roster.authorities_pem.encode(), mode=0o600)
    write_description(
        folder,
        description | {"federation": roster.federation, "roster_version": roster.version},
    )


def _roster_before(folder: Path, description: dict[str, Any]) -> Roster | None:
    """Return the installed roster, expired or not; None where it is damaged or gone."""
    try:
        return _signed_roster(folder, description)
    except ConfigError:
        # Installing one again is the remedy.
        return None


def _installed_roster(folder: Path, description: dict[str, Any]) -> Roster:
    roster = _signed_roster(folder, description)
    check_dates(roster, str(folder / "roster.json"))
    return roster


def _signed_roster(folder: Path, description: dict[str, Any]) -> Roster:
    path = folder / "roster.json"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the roster {path} cannot be read ({type(error).__name__})",
            "fetch the newest roster from the operator and install it with update-roster",
        ) from None
    try:
        roster = verify_roster(text, from_hex(description["root"]))
    except PeerError as error:
        raise ConfigError(
            f"{path}: {error.message}",
            "fetch the newest roster from the operator and install it with update-roster",
        ) from None
    if roster.version < description["roster_version"]:
        raise ConfigError(
            f"{path} has version {roster.version}, and this kit has seen version "
            f"{description['roster_version']}",
            "somebody put an older roster back; install the newest one with update-roster",
        )
    return roster


def check_dates(roster: Roster, origin: str) -> None:
    """Check that a roster may still be relied on.

    Raises
    ------
    ConfigError
        If it has expired.
    """
    now = current_time()
    if roster.expires is None or now > roster.expires:
        raise ConfigError(
            f"{origin} expired at {roster.expires:%Y-%m-%d %H:%M} UTC",
            "ask the operator for a new one (fedllm provision renew); this machine's clock says "
            f"{now:%Y-%m-%d %H:%M} UTC",
        )


def _check_ca(folder: Path, roster: Roster) -> None:
    path = folder / "ca.pem"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({type(error).__name__})",
            "restore it by installing the roster again with update-roster",
        ) from None
    if content != roster.authorities_pem.encode():
        raise ConfigError(
            f"{path} is not the CA that the operator signed in the roster",
            "somebody replaced it; restore it by installing the roster again with update-roster",
        )
    _check_authorities(roster, str(path))


def _check_authorities(roster: Roster, origin: str) -> None:
    found = certificates.read_certificates(roster.authorities_pem, origin)
    for certificate in found:
        certificates.check_authority(certificate, origin)
    newest = max(found, key=lambda certificate: certificate.not_valid_after_utc)
    certificates.check_period(newest, origin)


def check_membership(
    roster: Roster, role: Role, name: str, identity: Identity, folder: Path
) -> None:
    """Check that the roster lists a party under its name with its key.

    Raises
    ------
    ConfigError
        If it was revoked, or is not in the roster.
    """
    own = identity.public_bytes()
    if own in roster.revoked:
        raise ConfigError(
            f"the operator revoked the {_spoken(role, name)}: its key is not accepted any more",
            "ask the operator why; enroll again with a new kit if the key was lost",
        )
    if roster.key_of(role, name) != own:
        raise ConfigError(
            f"the roster (version {roster.version}) does not list the {_spoken(role, name)} "
            f"with the key of {folder}",
            "ask the operator to sign this kit's request, and install the answer",
        )


def _check_server(folder: Path, roster: Roster) -> None:
    path = folder / "server.pem"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({type(error).__name__})",
            f"install the operator's last answer again: fedllm server accept ANSWER --kit {folder}",
        ) from None
    certificate = certificates.read_certificates(content, str(path))[0]
    certificates.check_period(certificate, str(path))
    certificates.check_server_certificate(
        certificate,
        certificates.read_private_key(folder / "server.key"),
        certificates.read_certificates(roster.authorities_pem, "the roster"),
        split_address(roster.address)[0],
        str(path),
    )


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of ``host:port``; an IPv6 address stands in brackets."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def node_public_key(path: Path) -> bytes:
    """Return the public half (PEM) of a node key, as Flower's registration wants it.

    Raises
    ------
    ConfigError
        If the file is missing or holds no P-384 key.
    """
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), None)
    except (OSError, *UNREADABLE) as error:
        raise ConfigError(
            f"the node key {path} cannot be read ({type(error).__name__})",
            "restore the kit from its backup",
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ConfigError(f"{path} is not a P-384 key", "restore the kit from its backup")
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _spoken(role: Role, name: str) -> str:
    return f"site '{name}'" if role == "site" else role
