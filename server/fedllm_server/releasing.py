"""Release a finished run's model to the sites, or withdraw it: folders in ``state/releases``."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from fedllm.config import RunConfig, to_toml
from fedllm.errors import ConfigError, PeerError
from fedllm.federation.protocol.releases import (
    Release,
    ReleasedFile,
    is_file_name,
    read_unverified_release,
    sign_release,
)
from fedllm.federation.transport.releases import Shelf
from fedllm.files import atomic_directory, file_sha256, write_bytes
from fedllm.identity.kits import Kit
from fedllm.runs import names
from fedllm.runs.job import read_job
from fedllm.runs.record import read_config
from fedllm.runs.summary import Summary, read_summary
from fedllm_server.jobs import runs_folder

# Of ``summary.json``: nothing that names a site, a place on this machine or its software.
_TOLD = (
    "run",
    "run_id",
    "task",
    "rounds",
    "sites",
    "metrics",
    "metrics_before",
    "site_metrics",
    "privacy",
    "encryption",
    "adapter_sha256",
    "model",
    "started_from",
    "quality",
    "site_quality",
    "started",
    "finished",
    "simulated",
)


def releases_folder(kit: Path) -> Path:
    """Return the folder of all releases of a coordinator's kit."""
    return kit / "state" / "releases"


def shelf_of(kit: Path) -> Shelf:
    """Return a coordinator's releases as its listener serves them."""
    return Shelf(releases_folder(kit), names.RELEASE, names.ADAPTER)


def release_run(kit: Kit, name: str, now: datetime | None = None) -> Release:
    """Sign a finished run's model and lay it out for the sites; a second time changes nothing.

    The files are the run's own (hard links where the file system has them).

    Raises
    ------
    ConfigError
        If there is no such run, it is not finished, or another model of it was released before.
    """
    folder = runs_folder(kit.folder) / name
    job = read_job(folder)
    if job is None or job.status != "finished":
        state = f"is {job.status}" if job else "is not there"
        raise ConfigError(
            f"the run '{name}' {state}; what is released is the model of a finished run",
            f"see fedllm server status --kit {kit.folder}",
        )
    release = _release_of(kit, folder, now or datetime.now(UTC))
    place = releases_folder(kit.folder) / release.run
    before = _released_before(place)
    if before is not None:
        if before != replace(release, time=before.time):
            raise ConfigError(
                f"another model of the run '{name}' was released on {before.time:%Y-%m-%d %H:%M} "
                "UTC; sites that have it would refuse this one",
                f"if no site fetched it, withdraw it: fedllm server release {name} --withdraw "
                f"--kit {kit.folder}",
            )
        release = before
    withdrawn = _released_before(place, names.WITHDRAWN)
    if withdrawn is not None and withdrawn == replace(release, time=withdrawn.time):
        # Sites that fetched it then keep its digest, and refuse another one.
        release = withdrawn
    try:
        text = sign_release(release, kit.identity)
    except PeerError as error:
        raise ConfigError(f"{folder}: {error.message}", "give the run of this version") from None
    with atomic_directory(place, mode=0o700) as new:
        (new / names.ADAPTER).mkdir(mode=0o700)
        for file in release.files:
            _link(folder / names.ADAPTER / file.name, new / names.ADAPTER / file.name)
        write_bytes(new / names.RELEASE, text.encode(), mode=0o600)
    return release


def withdraw(kit: Kit, name: str) -> Release:
    """Stop giving a run's model to sites; those that have it keep it.

    What was signed stays beside, so that the same model is the same release when it is given again.

    Raises
    ------
    ConfigError
        If it was not released.
    """
    for place in releases_folder(kit.folder).glob("*"):
        release = _released_before(place)
        if release is not None and release.name == name:
            (place / names.RELEASE).replace(place / names.WITHDRAWN)
            shutil.rmtree(place / names.ADAPTER)
            return release
    raise ConfigError(f"no model of the run '{name}' is released", "check the run's name")


def _release_of(kit: Kit, folder: Path, now: datetime) -> Release:
    summary = read_summary(folder)
    adapter = folder / names.ADAPTER
    try:
        found = sorted(path for path in adapter.iterdir() if is_file_name(path.name))
    except OSError:
        raise ConfigError(f"the run in {folder} has no adapter", "resume the run") from None
    files = tuple(ReleasedFile(path.name, path.stat().st_size, file_sha256(path)) for path in found)
    return Release(
        federation=kit.federation,
        run=summary.run_id,
        name=summary.run,
        config=_terms(folder, read_config(folder)),
        base=str(summary.model.get("fingerprint", "")),
        summary=_told(summary),
        files=files,
        time=now.replace(microsecond=0),
    )


def _terms(folder: Path, config: RunConfig) -> str:
    try:
        return (folder / names.TERMS).read_text(encoding="utf-8")
    except FileNotFoundError:
        # Of a run that an earlier version carried. Here: the service does without torch.
        from fedllm.federation.protocol.terms import shared_config

        return to_toml(shared_config(config))


def _told(summary: Summary) -> dict[str, object]:
    told = {k: v for k, v in summary.model_dump(mode="json").items() if k in _TOLD}
    told["privacy"] = {k: v for k, v in summary.privacy.items() if k != "sites"}
    told["model"] = {k: v for k, v in summary.model.items() if k != "path"}
    return told


def _released_before(place: Path, document: str = names.RELEASE) -> Release | None:
    """Return what lies in a folder of releases, by whichever key it was signed; None if nothing."""
    try:
        text = (place / document).read_bytes()
    except OSError:
        return None
    try:
        return read_unverified_release(text)
    except PeerError as error:
        raise ConfigError(
            f"{place / document} is damaged ({error.message})", f"remove {place}"
        ) from None


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        # Another file system, or one without links.
        shutil.copyfile(source, target)
