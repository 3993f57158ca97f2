"""The operator's side: the folder that holds the root key, the CA and the list of parties.

DIR/federation.json   what was provisioned, by whose public keys; no secrets
DIR/root/             the root key that signs rosters
DIR/ca/               the private CA, one pair of files for each generation
DIR/roster.json       the newest signed roster, public
DIR/kits/<name>/      kits made here
DIR/answers/          answers to the requests of parties that made their keys themselves
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from fedllm.canonical import from_hex
from fedllm.errors import ConfigError, RefusedError
from fedllm.files import write_bytes
from fedllm.identity import operator_keys
from fedllm.identity.config import FederationConfig
from fedllm.identity.enrolment import Request, enroll
from fedllm.identity.federation_state import (
    EnrolledParty,
    FederationState,
    has_state,
    load_state,
    save_state,
)
from fedllm.identity.issuing import (
    Provisioned,
    answer_for,
    issue,
    newest_roster,
    unchanged,
    write_server_certificate,
)
from fedllm.identity.kit_folder import check_permissions
from fedllm.identity.operator_keys import OperatorKeys
from fedllm.identity.roster import Role
from fedllm.identity.titles import complaint, shown
from fedllm.locks import in_turn


def provision(
    config: FederationConfig,
    folder: Path,
    now: datetime | None = None,
    passphrase: bytes | None = None,
) -> Provisioned:
    """Make what is missing: root key, CA, certificate, roster, kits; keys are never replaced.

    ``passphrase`` protects root key and CA when they are made, and opens them afterwards.

    Raises
    ------
    ConfigError
        If ``folder`` belongs to another federation, a file in it is damaged, or the passphrase
        is wrong or, for new keys, too short.
    """
    moment = now or datetime.now(UTC)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(folder):
        keys, before = _begin(config, folder, moment, passphrase)
        state = before.model_copy(update={"config": config})
        if words := complaint(state.titles):
            raise ConfigError(words, "give one of the sites another name under [titles]")
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
            state = state.with_member(EnrolledParty.of(request, True, moment))
        done = (issue if state != before else unchanged)(keys, state, moment)
        kits = tuple(name for _, name in new)
        return Provisioned(done.state, done.roster, done.root, kits, (*notes, *done.notes))


def sign(
    folder: Path, request: Request, now: datetime | None = None, passphrase: bytes | None = None
) -> tuple[Provisioned, Path]:
    """Let a party in whose fingerprint the operator has compared; return its answer's path too.

    Signing the same request again gives an answer again.

    Raises
    ------
    RefusedError
        If its name is taken by other keys, a key was revoked, or a key is already in use.
    ConfigError
        If the folder is not the operator's, or its keys do not open.
    """
    moment = now or datetime.now(UTC)
    with _locked(folder):
        keys, state = _opened(folder, passphrase)
        member = EnrolledParty.of(request, False, moment)
        known = state.member(request.name)
        if known is None or known.keys != member.keys:
            _check_admissible(state, member, known)
            larger = state.with_member(member)
            if words := complaint(larger.titles):
                raise RefusedError(
                    f"the request of '{member.name}': {words}",
                    "give one of the sites another name under [titles] in the federation's file, "
                    "and run fedllm provision with it",
                )
            done = issue(keys, larger, moment)
        else:
            done = unchanged(keys, state, moment)
        if done.roster is None:
            return done, folder / "answers"
        answer = folder / "answers" / f"{request.name}.json"
        write_bytes(answer, answer_for(keys, done.roster, request.role).encode())
        return done, answer


def revoke(
    folder: Path, name: str, now: datetime | None = None, passphrase: bytes | None = None
) -> Provisioned:
    """Strike a party off the roster for good: its keys are never accepted again.

    Raises
    ------
    ConfigError
        If no active party has that name, or the folder's keys do not open.
    """
    moment = now or datetime.now(UTC)
    with _locked(folder):
        keys, state = _opened(folder, passphrase)
        member = state.member(name)
        if member is None:
            sites = [m.name for m in state.members if m.role == "site"]
            names = ", ".join(shown(name, state.titles) for name in sites) or "none"
            raise ConfigError(f"'{name}' is not in the federation", f"active sites: {names}")
        return issue(keys, state.without(member, moment), moment)


def renew(
    folder: Path,
    new_ca: bool = False,
    drop_old_ca: bool = False,
    now: datetime | None = None,
    passphrase: bytes | None = None,
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
        If the folder is not the operator's, or its keys do not open.
    """
    moment = now or datetime.now(UTC)
    with _locked(folder):
        keys, state = _opened(folder, passphrase)
        if new_ca and drop_old_ca:
            operator_keys.add_ca(folder, state.config, moment, passphrase)
        write_server_certificate(keys, state, moment)
        if new_ca and not drop_old_ca:
            operator_keys.add_ca(folder, state.config, moment, passphrase)
        if drop_old_ca:
            operator_keys.drop_old_cas(folder)
        return issue(keys, state, moment)


def change_passphrase(folder: Path, old: bytes | None, new: bytes | None) -> None:
    """Put the folder's keys under another passphrase; None for none.

    Raises
    ------
    ConfigError
        If the folder is not the operator's, the old passphrase is wrong, or the new one is too
        short.
    """
    with _locked(folder):
        state = load_state(folder)
        if state.root is None:
            # Of an earlier version; from now on needed without the passphrase.
            root = operator_keys.load_root(folder, old).public_bytes().hex()
            save_state(folder, state.model_copy(update={"root": root}))
        operator_keys.change_passphrase(folder, old, new)


def inspect(folder: Path) -> Provisioned:
    """Return what was provisioned, and change nothing; needs no passphrase.

    Raises
    ------
    ConfigError
        If the folder is not the operator's.
    """
    state = load_state(folder)
    root = (
        operator_keys.load_root(folder).public_bytes()
        if state.root is None
        else from_hex(state.root)
    )
    return Provisioned(state, newest_roster(folder, root), root)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep two operators from giving one version number to two rosters."""
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}", "run fedllm provision first")
    check_permissions(folder)
    with in_turn(folder / ".lock"):
        yield


def _opened(folder: Path, passphrase: bytes | None) -> tuple[OperatorKeys, FederationState]:
    """Open the keys, and see that nothing in the folder is older than the rest."""
    state = load_state(folder)
    keys = OperatorKeys.of(folder, passphrase, state.root)
    roster = newest_roster(folder, keys.root.public_bytes())
    if roster is not None and roster.version > state.version:
        raise ConfigError(
            f"{folder} was restored from different backups: roster.json has version "
            f"{roster.version}, federation.json knows {state.version}",
            "restore all of it from the newest backup; otherwise a revocation could be forgotten",
        )
    return keys, state


def _begin(
    config: FederationConfig, folder: Path, now: datetime, passphrase: bytes | None
) -> tuple[OperatorKeys, FederationState]:
    if not has_state(folder):
        if (folder / "roster.json").exists():
            raise ConfigError(
                f"{folder} has lost its list of parties (federation.json)",
                "restore the folder from its newest backup; otherwise revocations are forgotten",
            )
        # Root and CA first: a state without them would be a federation that cannot sign.
        if not operator_keys.has_root(folder):
            operator_keys.make_root(folder, passphrase)
        root = operator_keys.load_root(folder, passphrase).public_bytes().hex()
        if not operator_keys.has_ca(folder):
            operator_keys.add_ca(folder, config, now, passphrase)
        save_state(folder, FederationState(config=config, root=root))
    keys, state = _opened(folder, passphrase)
    if state.config.name != config.name:
        raise ConfigError(
            f"{folder} holds the federation '{state.config.name}', not '{config.name}'",
            "choose another folder with --out",
        )
    return keys, state


def _made_here(config: FederationConfig) -> list[tuple[Role, str]]:
    wanted: list[tuple[Role, str]] = [("operator", "operator")]
    if config.coordinator.keys == "here":
        wanted.append(("coordinator", "coordinator"))
    if config.authority.keys == "here":
        wanted.append(("authority", "authority"))
    return wanted + [("site", name) for name in config.sites]


def _check_admissible(
    state: FederationState, member: EnrolledParty, known: EnrolledParty | None
) -> None:
    if known is not None:
        raise RefusedError(
            f"'{member.name}' is already in the federation with other keys",
            "somebody else may be using the name: call the site. If it lost its keys: "
            f"fedllm provision revoke {member.name}, then sign the request again",
        )
    if any(
        member.signing_key == gone.signing_key
        or (member.node_key is not None and member.node_key == gone.node_key)
        for gone in state.revoked
    ):
        raise RefusedError(
            f"a key in the request of '{member.name}' was revoked",
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
