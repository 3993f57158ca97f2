"""Released models at a site: which there are, whether they are what they should be, fetching one.

The coordinator is not believed. What it gives must bear its signature under the site's pinned
roster, be of a run that this site knows from its own ledger (or the person is told that it is not),
and be the same that this site was given before: the first signed document of each run stays in the
kit, where another one is noticed. Whether all sites were given the same no site can tell by itself;
its digest is there to be compared.
"""

from __future__ import annotations

import http
import http.client
from dataclasses import dataclass
from pathlib import Path

from fedllm.canonical import canonical_json, read_json, reading
from fedllm.errors import ConfigError, FedllmError, PeerError, RefusedError
from fedllm.federation.protocol.releases import (
    MAX_LIST_BYTES,
    MAX_LISTED,
    RELEASES_PATH,
    Release,
    read_unverified_release,
    verify_release,
)
from fedllm.federation.site.files import SiteFiles
from fedllm.federation.site.memory import SiteMemory
from fedllm.files import write_bytes
from fedllm.identity.kits import Kit
from fedllm.privacy.ledger.audit import read_state
from fedllm_client.connection import ask, reason


@dataclass(frozen=True)
class Offered:
    """A release as the coordinator offers it now.

    Attributes
    ----------
    release : Release
        Signed by the roster's coordinator.
    text : str
        What was signed, with its signature.
    took_part : bool
        Whether this site's own ledger names the run.
    """

    release: Release
    text: str
    took_part: bool


def offered_releases(kit: Kit) -> tuple[list[Offered], int]:
    """Ask the coordinator which models are released.

    Returns
    -------
    (list of Offered, int)
        The newest first, and how many more there are that are no releases of this federation's
        coordinator, and are not shown.

    Raises
    ------
    FedllmError
        If the coordinator cannot be reached, or knows no releases.
    PeerError
        If the answer is no list.
    """
    coordinator = kit.roster.coordinator
    if coordinator is None:
        raise ConfigError(
            "the roster names no coordinator's key, so no release can be checked",
            "ask the operator for a newer roster",
        )
    trained = runs_of(kit)
    found: list[Offered] = []
    wrong = 0
    for said in _listed(kit):
        try:
            text = canonical_json(said).decode()
            release = verify_release(text, coordinator)
            if release.federation != kit.federation:
                raise PeerError("a release of another federation")
        except FedllmError:
            wrong += 1
            continue
        found.append(Offered(release, text, release.run in trained))
    return sorted(found, key=lambda one: one.release.time, reverse=True), wrong


def chosen(offers: list[Offered], wrong: int, wanted: str) -> Offered:
    """Return the release that a run's name or identifier means.

    Raises
    ------
    ConfigError
        If there is none, or a name means several.
    PeerError
        If there is none, and some were not signed as they should be.
    """
    found = [one for one in offers if wanted in (one.release.name, one.release.run)]
    if len(found) == 1:
        return found[0]
    if found:
        runs = ", ".join(one.release.run for one in found)
        raise ConfigError(f"several released runs are called '{wanted}'", f"give one of: {runs}")
    if wrong:
        raise PeerError(
            f"no release of '{wanted}' is signed by the coordinator in this site's roster; "
            f"{wrong} of those offered are not",
            "do not use what is offered, and tell the federation's operator",
        )
    raise ConfigError(
        f"the coordinator has released no run '{wanted}'",
        "see fedllm client models list; a coordinator releases a run with fedllm server release",
    )


def runs_of(kit: Kit) -> dict[str, set[str]]:
    """Return the runs that this site's ledger names, and the digests of their configurations.

    A run that was carried over from an earlier ledger has none.

    Raises
    ------
    TamperedError
        If the ledger was changed, or is an older copy.
    """
    files = SiteFiles.of_kit(kit.folder)
    if not files.ledger.exists():
        return {}
    head = SiteMemory(files.memory).head()
    anchors = [head] if head is not None else []
    state = read_state(files.ledger, kit.identity.public_bytes(), anchors)
    runs: dict[str, set[str]] = {}
    for carried in state.carried:
        for run in carried.runs:
            runs.setdefault(run, set())
    for charge in state.reservations.values():
        known = runs.setdefault(charge.run, set())
        if charge.config:
            known.add(charge.config)
    return runs


def require_own_run(kit: Kit, release: Release) -> bool:
    """Tell whether this site took part; refuse a release that says of its run what is not so.

    Raises
    ------
    PeerError
        If the site trained in that run under another configuration.
    """
    configs = runs_of(kit).get(release.run)
    if configs and release.config_digest not in configs:
        raise PeerError(
            f"the release says that the run '{release.name}' had another configuration than the "
            "one under which this site trained in it",
            "do not use it, and tell the federation's operator: ledger and release are signed",
        )
    return configs is not None


def remember(kit: Kit, offer: Offered) -> None:
    """Keep what was signed of a run when it is first fetched, and refuse anything else later.

    Raises
    ------
    RefusedError
        If this site was given another release of the same run before.
    """
    path = kept_path(kit, offer.release)
    if path.exists():
        before = read_unverified_release(path.read_bytes())
        if before.digest == offer.release.digest:
            return
        age = "an older" if offer.release.time < before.time else "another"
        raise RefusedError(
            f"the coordinator now gives {age} release of the run '{offer.release.name}' "
            f"({offer.release.digest[:16]}) than the one that this site has "
            f"({before.digest[:16]}, of {before.time:%Y-%m-%d %H:%M} UTC)",
            f"ask the coordinator why; the one that came first lies in {path}, and whoever "
            "believes the coordinator moves it aside",
        )
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_bytes(path, offer.text.encode(), mode=0o600)


def kept_path(kit: Kit, release: Release) -> Path:
    """Return where the signed document of a run that was fetched is kept."""
    return kit.folder / "state" / "releases" / f"{release.run}.json"


def _listed(kit: Kit) -> list[object]:
    try:
        status, content = ask(kit, RELEASES_PATH, b"", MAX_LIST_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise FedllmError(
            f"the coordinator at {kit.address} cannot be asked ({reason(error)})",
            "try fedllm client check, which says what is in the way",
        ) from None
    require_ok(status, "the list of released models")
    with reading(PeerError("the coordinator's list of releases is damaged", "ask again")):
        listed = read_json(content)
        if not isinstance(listed, list) or len(listed) > MAX_LISTED:
            raise ValueError("no list")
    return listed


def require_ok(status: int, what: str) -> None:
    """Raise the error that an answer's status stands for, if it is none of success."""
    if status == http.HTTPStatus.OK:
        return
    if status == http.HTTPStatus.UNAUTHORIZED:
        raise RefusedError(
            "the coordinator does not know this site's node key",
            "ask the operator whether the site is in the newest roster; compare the clock",
        )
    if status == http.HTTPStatus.NOT_FOUND:
        raise PeerError(
            f"the coordinator does not have {what}",
            "ask the coordinator: it was withdrawn, or its fedllm is of an earlier version",
        )
    raise FedllmError(f"the coordinator gave {what} not now (status {status})", "try again later")
