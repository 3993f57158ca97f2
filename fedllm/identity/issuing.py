"""What the operator's keys sign: rosters, answers, the coordinator's certificate."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from fedllm.canonical import from_hex
from fedllm.errors import ConfigError, FedllmError
from fedllm.files import write_bytes
from fedllm.identity import certificates
from fedllm.identity.enrolment import accept, make_answer, read_answer
from fedllm.identity.federation_state import EnrolledParty, FederationState, save_state
from fedllm.identity.operator_keys import OperatorKeys, ca_certificates
from fedllm.identity.roster import Role, Roster, sign_roster, verify_roster


@dataclass(frozen=True)
class Provisioned:
    """What a step of the operator did.

    Attributes
    ----------
    state : FederationState
        As it is now on disk.
    roster : Roster, optional
        The newest one; None while the key authority's request is still awaited.
    root : bytes
        The root key's public half.
    kits : tuple of str
        Names of kits made in this step.
    notes : tuple of str
        What the operator should know.
    """

    state: FederationState
    roster: Roster | None
    root: bytes
    kits: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def issue(keys: OperatorKeys, state: FederationState, now: datetime) -> Provisioned:
    """Sign a new roster and hand it out."""
    state = state.model_copy(update={"version": state.version + 1})
    # The number first: were it lost, another roster would get the same one.
    save_state(keys.folder, state)
    _keep_server_certificate(keys, state, now)
    if state.member("authority") is None:
        note = "no roster yet: the key authority's request is awaited (fedllm provision sign)"
        return Provisioned(state, None, keys.root.public_bytes(), notes=(note,))
    roster = _roster(keys.folder, state, now)
    write_bytes(keys.folder / "roster.json", sign_roster(roster, keys.root).encode())
    return _handed_out(keys, state, roster)


def unchanged(keys: OperatorKeys, state: FederationState, now: datetime) -> Provisioned:
    """Hand the newest roster out once more; makes it when a crash came before it."""
    roster = newest_roster(keys.folder, keys.root.public_bytes())
    if roster is None or roster.version != state.version:
        return issue(keys, state, now)
    return _handed_out(keys, state, roster)


def newest_roster(folder: Path, root: bytes) -> Roster | None:
    """Return the newest signed roster; None before the first one.

    Raises
    ------
    PeerError
        If it is damaged, or another root key signed it.
    """
    path = folder / "roster.json"
    if not path.exists():
        return None
    return verify_roster(path.read_bytes(), root)


def answer_for(keys: OperatorKeys, roster: Roster, role: Role) -> str:
    """Return the answer that a party of this role installs."""
    certificate = server_certificate(keys.folder) if role == "coordinator" else None
    text = certificates.pem(certificate) if certificate else None
    return make_answer(roster, keys.root, text)


def server_certificate(folder: Path) -> x509.Certificate | None:
    """Return the coordinator's newest certificate, or None before its request was signed."""
    path = folder / "server.pem"
    if not path.exists():
        return None
    return certificates.read_certificates(path.read_bytes(), str(path))[0]


def write_server_certificate(keys: OperatorKeys, state: FederationState, now: datetime) -> None:
    """Issue the coordinator's certificate from the newest CA, if there is a coordinator."""
    coordinator = state.member("coordinator")
    if coordinator is None:
        return
    certificate = certificates.make_server_certificate(
        state.config.name,
        _requested_key(coordinator),
        state.config.coordinator.hosts,
        keys.issuing_ca(),
        now,
        state.config.validity_days,
    )
    write_bytes(keys.folder / "server.pem", certificates.pem(certificate).encode())


def _keep_server_certificate(keys: OperatorKeys, state: FederationState, now: datetime) -> None:
    """Make the certificate if there is none, or if it names other hosts or another key."""
    coordinator = state.member("coordinator")
    if coordinator is None:
        return
    present = server_certificate(keys.folder)
    if (
        present is None
        or not certificates.names_exactly(present, state.config.coordinator.hosts)
        or present.public_key() != _requested_key(coordinator)
    ):
        write_server_certificate(keys, state, now)


def _requested_key(coordinator: EnrolledParty) -> ec.EllipticCurvePublicKey:
    unusable = ConfigError("the coordinator's TLS key is no elliptic-curve key", "enroll it anew")
    try:
        request = x509.load_pem_x509_csr((coordinator.server_request or "").encode())
        key = request.public_key()
    except certificates.UNREADABLE_X509:
        raise unusable from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise unusable
    return key


def _handed_out(keys: OperatorKeys, state: FederationState, roster: Roster) -> Provisioned:
    """Install the newest roster in the kits that lie here."""
    notes = []
    for member in state.members:
        kit = keys.folder / "kits" / member.name
        if member.made_here and kit.exists():
            try:
                accept(kit, read_answer(answer_for(keys, roster, member.role)))
            except FedllmError as error:
                notes.append(f"kit '{member.name}' was not brought up to date: {error}")
    if len(roster.sites) < state.config.min_cohort:
        notes.append(
            f"{len(roster.sites)} sites are too few to open a sum: "
            f"min_cohort is {state.config.min_cohort}"
        )
    return Provisioned(state, roster, keys.root.public_bytes(), notes=tuple(notes))


def _roster(folder: Path, state: FederationState, now: datetime) -> Roster:
    def key(name: str) -> bytes | None:
        member = state.member(name)
        return from_hex(member.signing_key) if member else None

    sites = [member for member in state.members if member.role == "site"]
    return Roster(
        authority=key("authority") or b"",
        sites={member.name: from_hex(member.signing_key) for member in sites},
        coordinator=key("coordinator"),
        operator=key("operator"),
        node_keys={m.name: m.node_key.encode() for m in state.members if m.node_key},
        version=state.version,
        revoked=tuple(from_hex(revocation.signing_key) for revocation in state.revoked),
        federation=state.config.name,
        address=state.config.address,
        authorities_pem="".join(
            certificates.pem(c) for c in ca_certificates(folder) if c.not_valid_after_utc > now
        ),
        min_cohort=state.config.min_cohort,
        former={m.name: found for m in sites if (found := state.former_keys(m.name))},
        titles={m.name: state.titles[m.name] for m in sites if m.name in state.titles},
        issued=now.replace(microsecond=0),
        expires=now.replace(microsecond=0) + timedelta(days=state.config.validity_days),
    )
