"""The operator's side: the folder that holds the root key, the CA and the list of parties.

DIR/federation.json   what was provisioned, by whose public keys; no secrets
DIR/root/             the root key that signs rosters
DIR/ca/               the private CA, one pair of files for each generation
DIR/roster.json       the newest signed roster, public
DIR/kits/<name>/      kits made here
DIR/answers/          answers to the requests of parties that made their keys themselves
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import Field, ValidationError

from fedllm.config import Section
from fedllm.errors import ConfigError, FedllmError, RefusedError
from fedllm.files import write_bytes
from fedllm.identity import certificates
from fedllm.identity.config import FederationConfig
from fedllm.identity.enrolment import Request, accept, enroll, make_answer, read_answer
from fedllm.identity.keys import Identity
from fedllm.identity.kits import check_permissions
from fedllm.identity.roster import Role, Roster, sign_roster, verify_roster
from fedllm.locks import in_turn

_STATE = "federation.json"


class Member(Section):
    """A party that was signed: its public keys, as in its `Request`."""

    role: Role
    name: str
    signing_key: str
    node_key: str | None
    server_request: str | None
    made_here: bool
    since: datetime

    @classmethod
    def of(cls, request: Request, made_here: bool, now: datetime) -> Member:
        """Take over a request that was checked."""
        return cls(
            role=request.role,
            name=request.name,
            signing_key=request.signing_key.hex(),
            node_key=request.node_key.decode() if request.node_key else None,
            server_request=request.server_request.decode() if request.server_request else None,
            made_here=made_here,
            since=now,
        )


class Revocation(Section):
    """A key that is never accepted again."""

    name: str
    signing_key: str
    at: datetime


class FederationState(Section):
    """Everything that ``federation.json`` holds."""

    config: FederationConfig
    version: Annotated[int, Field(ge=0)] = 0
    members: tuple[Member, ...] = ()
    revoked: tuple[Revocation, ...] = ()

    def member(self, name: str) -> Member | None:
        """Return the active party of that name."""
        return next((member for member in self.members if member.name == name), None)


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


def provision(config: FederationConfig, folder: Path, now: datetime | None = None) -> Provisioned:
    """Make what is missing: root key, CA, certificate, roster, kits; keys are never replaced.

    Raises
    ------
    ConfigError
        If ``folder`` belongs to another federation, or a file in it is damaged.
    """
    moment = now or datetime.now(UTC)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(folder):
        state = _begin(config, folder, moment)
        wanted = _made_here(config)
        gone = {revocation.name for revocation in state.revoked}
        notes = [
            f"'{name}' was revoked and stays out: take it out of the file, or let it enroll anew"
            for _, name in wanted
            if name in gone and state.member(name) is None
        ]
        notes += [
            f"site '{member.name}' is no longer in the file and stays in the federation; "
            f"to remove it: fedllm provision revoke {member.name} --dir {folder}"
            for member in state.members
            if member.made_here and (member.role, member.name) not in wanted
        ]
        new = [
            (role, name) for role, name in wanted if state.member(name) is None and name not in gone
        ]
        for role, name in new:
            request = enroll(folder / "kits" / name, role, name)
            state = _with_member(state, Member.of(request, True, moment))
        changed = bool(new) or _load_state(folder) != state
        done = _issue(folder, state, moment) if changed else _unchanged(folder, state, moment)
        kits = tuple(name for _, name in new)
        return Provisioned(done.state, done.roster, done.root, kits, (*notes, *done.notes))


def sign(folder: Path, request: Request, now: datetime | None = None) -> tuple[Provisioned, Path]:
    """Let a party in whose fingerprint the operator has compared; return its answer's path too.

    Signing the same request again gives an answer again.

    Raises
    ------
    RefusedError
        If its name is taken by other keys, a key was revoked, or a key is already in use.
    ConfigError
        If the key authority is still missing, or the folder is not the operator's.
    """
    moment = now or datetime.now(UTC)
    with _locked(folder):
        state = _load_state(folder)
        member = Member.of(request, False, moment)
        known = state.member(request.name)
        if known is None or _keys(known) != _keys(member):
            _check_admissible(state, member, known)
            state = _with_member(state, member)
            done = _issue(folder, state, moment)
        else:
            done = _unchanged(folder, state, moment)
        if done.roster is None:
            return done, folder / "answers"
        answer = folder / "answers" / f"{request.name}.json"
        write_bytes(answer, _answer(folder, done.roster, request.role).encode())
        return done, answer


def revoke(folder: Path, name: str, now: datetime | None = None) -> Provisioned:
    """Strike a party off the roster for good: its keys are never accepted again.

    Raises
    ------
    ConfigError
        If no active party has that name.
    """
    moment = now or datetime.now(UTC)
    with _locked(folder):
        state = _load_state(folder)
        member = state.member(name)
        if member is None:
            names = ", ".join(m.name for m in state.members if m.role == "site") or "none"
            raise ConfigError(f"'{name}' is not in the federation", f"active sites: {names}")
        struck = Revocation(name=name, signing_key=member.signing_key, at=moment)
        state = state.model_copy(
            update={
                "members": tuple(m for m in state.members if m.name != name),
                "revoked": (*state.revoked, struck),
            }
        )
        return _issue(folder, state, moment)


def renew(
    folder: Path,
    new_ca: bool = False,
    drop_old_ca: bool = False,
    now: datetime | None = None,
) -> Provisioned:
    """Make a new roster and a new server certificate, valid for ``validity_days`` from now.

    A CA is rolled over in three steps, with the roster handed out after each: ``new_ca``
    adds one; the next renewal issues the server's certificate from it; ``drop_old_ca`` leaves
    the old one out. Certificates come from the newest CA that a roster already announced.
    Both at once replace a CA that cannot be trusted any more: nobody can connect before it
    has the new roster.

    Raises
    ------
    ConfigError
        If the folder is not the operator's.
    """
    moment = now or datetime.now(UTC)
    with _locked(folder):
        state = _load_state(folder)
        if new_ca and drop_old_ca:
            _add_ca(folder, state.config, moment)
        _write_server_certificate(folder, state, moment)
        if new_ca and not drop_old_ca:
            _add_ca(folder, state.config, moment)
        if drop_old_ca:
            _drop_old_cas(folder)
        return _issue(folder, state, moment)


def inspect(folder: Path) -> Provisioned:
    """Return what was provisioned, and change nothing.

    Raises
    ------
    ConfigError
        If the folder is not the operator's.
    """
    state, root = _load_state(folder), _root(folder)
    return Provisioned(state, _newest_roster(folder, root), root.public_bytes())


def server_certificate(folder: Path) -> x509.Certificate | None:
    """Return the coordinator's newest certificate, or None before its request was signed."""
    path = folder / "server.pem"
    if not path.exists():
        return None
    return certificates.read_certificates(path.read_bytes(), str(path))[0]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep two operators from giving one version number to two rosters."""
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}", "run fedllm provision first")
    with in_turn(folder / ".lock"):
        yield


def _begin(config: FederationConfig, folder: Path, now: datetime) -> FederationState:
    check_permissions(folder)
    if not (folder / _STATE).exists():
        # Root and CA first: a state without them would be a federation that cannot sign.
        if not (folder / "root" / "secret.bin").exists():
            Identity.generate("root").save(folder / "root")
        if not _ca_files(folder):
            _add_ca(folder, config, now)
        _save_state(folder, FederationState(config=config))
    state = _load_state(folder)
    if state.config.name != config.name:
        raise ConfigError(
            f"{folder} holds the federation '{state.config.name}', not '{config.name}'",
            "choose another folder with --out",
        )
    return state.model_copy(update={"config": config})


def _made_here(config: FederationConfig) -> list[tuple[Role, str]]:
    wanted: list[tuple[Role, str]] = [("operator", "operator")]
    if config.coordinator.keys == "here":
        wanted.append(("coordinator", "coordinator"))
    if config.authority.keys == "here":
        wanted.append(("authority", "authority"))
    return wanted + [("site", name) for name in config.sites]


def _with_member(state: FederationState, member: Member) -> FederationState:
    return state.model_copy(update={"members": (*state.members, member)})


def _keys(member: Member) -> tuple[str | None, ...]:
    return member.role, member.signing_key, member.node_key, member.server_request


def _check_admissible(state: FederationState, member: Member, known: Member | None) -> None:
    if known is not None:
        raise RefusedError(
            f"'{member.name}' is already in the federation with other keys",
            "somebody else may be using the name: call the site. If it lost its keys: "
            f"fedllm provision revoke {member.name}, then sign the request again",
        )
    if member.signing_key in {revocation.signing_key for revocation in state.revoked}:
        raise RefusedError(
            f"the key in the request of '{member.name}' was revoked",
            "the party must enroll with a new kit",
        )
    for other in state.members:
        if member.signing_key == other.signing_key or (
            member.node_key is not None and member.node_key == other.node_key
        ):
            raise RefusedError(
                f"the request of '{member.name}' carries a key of '{other.name}'",
                "every party makes its own kit; a kit is never copied",
            )


def _unchanged(folder: Path, state: FederationState, now: datetime) -> Provisioned:
    root = _root(folder)
    roster = _newest_roster(folder, root)
    if roster is None or roster.version != state.version:
        # A crash came between the state and the roster.
        return _issue(folder, state, now)
    return _handed_out(folder, state, roster, root)


def _issue(folder: Path, state: FederationState, now: datetime) -> Provisioned:
    """Sign a new roster and hand it out."""
    root = _root(folder)
    state = state.model_copy(update={"version": state.version + 1})
    # The number first: were it lost, another roster would get the same one.
    _save_state(folder, state)
    _keep_server_certificate(folder, state, now)
    if state.member("authority") is None:
        note = "no roster yet: the key authority's request is awaited (fedllm provision sign)"
        return Provisioned(state, None, root.public_bytes(), notes=(note,))
    roster = _roster(folder, state, now)
    write_bytes(folder / "roster.json", sign_roster(roster, root).encode())
    return _handed_out(folder, state, roster, root)


def _handed_out(
    folder: Path, state: FederationState, roster: Roster, root: Identity
) -> Provisioned:
    """Install the newest roster in the kits that lie here."""
    notes = []
    for member in state.members:
        kit = folder / "kits" / member.name
        if member.made_here and kit.exists():
            try:
                accept(kit, read_answer(_answer(folder, roster, member.role)))
            except FedllmError as error:
                notes.append(f"kit '{member.name}' was not brought up to date: {error}")
    if len(roster.sites) < state.config.min_cohort:
        notes.append(
            f"{len(roster.sites)} sites are too few to open a sum: "
            f"min_cohort is {state.config.min_cohort}"
        )
    return Provisioned(state, roster, root.public_bytes(), notes=tuple(notes))


def _roster(folder: Path, state: FederationState, now: datetime) -> Roster:
    def key(name: str) -> bytes | None:
        member = state.member(name)
        return bytes.fromhex(member.signing_key) if member else None

    sites = [member for member in state.members if member.role == "site"]
    authorities = [certificate for certificate, _ in _authorities(folder)]
    return Roster(
        authority=key("authority") or b"",
        sites={member.name: bytes.fromhex(member.signing_key) for member in sites},
        coordinator=key("coordinator"),
        operator=key("operator"),
        node_keys={m.name: m.node_key.encode() for m in state.members if m.node_key},
        version=state.version,
        revoked=tuple(bytes.fromhex(revocation.signing_key) for revocation in state.revoked),
        federation=state.config.name,
        address=state.config.address,
        authorities_pem="".join(
            certificates.pem(c) for c in authorities if c.not_valid_after_utc > now
        ),
        min_cohort=state.config.min_cohort,
        issued=now.replace(microsecond=0),
        expires=now.replace(microsecond=0) + timedelta(days=state.config.validity_days),
    )


def _answer(folder: Path, roster: Roster, role: Role) -> str:
    certificate = server_certificate(folder) if role == "coordinator" else None
    text = certificates.pem(certificate) if certificate else None
    return make_answer(roster, _root(folder), text)


def _keep_server_certificate(folder: Path, state: FederationState, now: datetime) -> None:
    """Make the certificate if there is none, or if it names other hosts or another key."""
    coordinator = state.member("coordinator")
    if coordinator is None:
        return
    present = server_certificate(folder)
    hosts = state.config.coordinator.hosts
    if (
        present is None
        or not certificates.names_exactly(present, hosts)
        or present.public_key() != _requested_key(coordinator)
    ):
        _write_server_certificate(folder, state, now)


def _write_server_certificate(folder: Path, state: FederationState, now: datetime) -> None:
    coordinator = state.member("coordinator")
    if coordinator is None:
        return
    certificate = certificates.make_server_certificate(
        state.config.name,
        _requested_key(coordinator),
        state.config.coordinator.hosts,
        _authorities(folder)[-1],
        now,
        state.config.validity_days,
    )
    write_bytes(folder / "server.pem", certificates.pem(certificate).encode())


def _requested_key(coordinator: Member) -> ec.EllipticCurvePublicKey:
    request = x509.load_pem_x509_csr((coordinator.server_request or "").encode())
    key = request.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError("the coordinator's TLS key is no elliptic-curve key", "enroll it anew")
    return key


def _root(folder: Path) -> Identity:
    return Identity.load("root", folder / "root")


def _newest_roster(folder: Path, root: Identity) -> Roster | None:
    path = folder / "roster.json"
    if not path.exists():
        return None
    return verify_roster(path.read_text(encoding="utf-8"), root.public_bytes())


def _ca_files(folder: Path) -> list[Path]:
    found = (folder / "ca").glob("ca-*.pem")
    return sorted(found, key=lambda path: int(path.stem.removeprefix("ca-")))


def _authorities(folder: Path) -> Sequence[tuple[x509.Certificate, ec.EllipticCurvePrivateKey]]:
    found = []
    for path in _ca_files(folder):
        certificate = certificates.read_certificates(path.read_bytes(), str(path))[0]
        certificates.check_authority(certificate, str(path))
        found.append((certificate, certificates.read_private_key(path.with_suffix(".key"))))
    if not found:
        raise ConfigError(f"{folder / 'ca'} holds no CA", "restore the folder from its backup")
    return found


def _add_ca(folder: Path, config: FederationConfig, now: datetime) -> None:
    files = _ca_files(folder)
    number = 1 + (int(files[-1].stem.removeprefix("ca-")) if files else 0)
    (folder / "ca").mkdir(exist_ok=True, mode=0o700)
    key = certificates.new_tls_key()
    certificate = certificates.make_authority(config.name, key, now, config.ca_validity_days)
    path = folder / "ca" / f"ca-{number}"
    write_bytes(path.with_suffix(".key"), certificates.private_pem(key), mode=0o600)
    # The certificate last: only a CA with both files counts.
    write_bytes(path.with_suffix(".pem"), certificates.pem(certificate).encode())


def _drop_old_cas(folder: Path) -> None:
    for path in _ca_files(folder)[:-1]:
        path.unlink()
        path.with_suffix(".key").unlink(missing_ok=True)


def _load_state(folder: Path) -> FederationState:
    path = folder / _STATE
    try:
        return FederationState.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(
            f"{folder} is no operator's folder: it has no {_STATE}",
            f"run: fedllm provision FEDERATION.toml --out {folder}",
        ) from None
    except (OSError, ValidationError):
        raise ConfigError(f"{path} is damaged", "restore the folder from its backup") from None


def _save_state(folder: Path, state: FederationState) -> None:
    content = state.model_dump_json(indent=2).encode() + b"\n"
    write_bytes(folder / _STATE, content, mode=0o600)
