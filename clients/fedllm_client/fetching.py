"""Fetch a released model into a folder: in pieces, checked, whole or not at all, and resumed.

What arrived so far lies in a folder beside the one to make, for its owner alone; the next try goes
on where the last one broke off. The folder itself appears when every byte was checked.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fedllm.canonical import read_object, reading
from fedllm.config import RunConfig, parse, parse_toml, to_toml
from fedllm.config.site_policy import SiteModelSection
from fedllm.errors import ConfigError, FedllmError, PeerError, StorageError
from fedllm.federation.protocol.releases import (
    PIECE_BYTES,
    PIECE_PATH,
    Release,
    ReleasedFile,
    piece_request,
    read_unverified_release,
)
from fedllm.files import file_sha256, publish_directory, write_bytes, write_json
from fedllm.identity.kits import Kit
from fedllm.locks import exclusive
from fedllm.runs import names
from fedllm.runs.summary import Summary
from fedllm_client.connection import ask, reason
from fedllm_client.releases import Offered, kept_path, remember, require_ok, require_own_run

_TRIES = 5
# What a release needs beside its files.
_ROOM_BYTES = 64 << 20

Heard = Callable[[int, int], None]


@dataclass(frozen=True)
class Fetched:
    """A released model that lies at this site.

    Attributes
    ----------
    folder : Path
        Like a finished run's: ``run.toml`` (with this site's base model), ``summary.json``,
        ``adapter/``, and ``release.json``, which the coordinator signed.
    release : Release
        What it is.
    took_part : bool
        Whether this site's ledger names its run.
    new_bytes : int
        How many bytes were fetched now.
    """

    folder: Path
    release: Release
    took_part: bool
    new_bytes: int


def fetch(
    kit: Kit,
    base: SiteModelSection,
    offer: Offered,
    out: Path,
    heard: Heard = lambda done, size: None,
) -> Fetched:
    """Fetch what the coordinator offers, and put it into a folder once all of it was checked.

    Parameters
    ----------
    base : SiteModelSection
        The site's own copy of the base model, and where it computes.
    out : Path
        The folder to make. If it holds this very release, it is checked again.
    heard : callable
        Told how many of how many bytes are there.

    Raises
    ------
    PeerError
        If the release contradicts this site's ledger, or a file is not what was signed.
    RefusedError
        If this site was given another release of the same run before.
    ConfigError
        If the release is for another base model than the site's, or ``out`` is in use.
    FedllmError
        If the connection breaks; what came is kept for the next try.
    StorageError
        If the disk is full.
    """
    release = offer.release
    took_part = require_own_run(kit, release)
    config = _config_of(release)
    _require_base(release, config, base)
    state = kept_path(kit, release).parent
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    with exclusive(state / ".lock", "a model is being fetched with this kit", "wait for it"):
        remember(kit, offer)
        if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
            _require_same(release, out)
            return Fetched(out, release, took_part, 0)
        part = _part_folder(out, offer)
        adapter = part / names.ADAPTER
        adapter.mkdir(mode=0o700, exist_ok=True)
        new_bytes = _Download(kit, release, adapter, heard).run()
        _require_adapter_of(release, config, adapter)
        _describe(part, offer, config, base)
        publish_directory(part, out)
    return Fetched(out, release, took_part, new_bytes)


class _Download:
    def __init__(self, kit: Kit, release: Release, folder: Path, heard: Heard) -> None:
        self._kit = kit
        self._release = release
        self._folder = folder
        self._heard = heard
        self._done = 0
        self._new = 0

    def run(self) -> int:
        """Get what is missing; return how many bytes that was."""
        there = sum(path.stat().st_size for path in self._folder.iterdir())
        free = shutil.disk_usage(self._folder).free
        if self._release.size - there + _ROOM_BYTES > free:
            raise StorageError(
                f"the model has {self._release.size:,} bytes, and the disk of {self._folder} has "
                f"{free:,} left",
                "free disk space, or name another --out",
            )
        for file in self._release.files:
            self._file(file)
        return self._new

    def _file(self, file: ReleasedFile) -> None:
        path = self._folder / file.name
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(path, flags, 0o600), "r+b") as stream:
            if os.fstat(stream.fileno()).st_size > file.size:
                stream.truncate(0)
            found = hashlib.sha256()
            while part := stream.read(PIECE_BYTES):
                found.update(part)
                self._come(len(part))
            while (have := stream.tell()) < file.size:
                piece = self._piece(file, have)
                stream.write(piece)
                stream.flush()
                found.update(piece)
                self._new += len(piece)
                self._come(len(piece))
            self._require_digest(file, found.hexdigest(), stream)

    def _come(self, length: int) -> None:
        self._done += length
        self._heard(self._done, self._release.size)

    def _require_digest(self, file: ReleasedFile, found: str, stream: BinaryIO) -> None:
        if found == file.sha256:
            return
        # Nothing of it is worth keeping: the next try begins it anew.
        stream.truncate(0)
        raise PeerError(
            f"{file.name} is not what the coordinator signed: its SHA-256 differs",
            "try once more; if it happens again, tell the coordinator and the operator",
        )

    def _piece(self, file: ReleasedFile, offset: int) -> bytes:
        """Get one piece; a connection that breaks is tried again, some seconds later."""
        wanted = min(PIECE_BYTES, file.size - offset)
        request = piece_request(self._release.run, file.name, offset)
        for left in reversed(range(_TRIES)):
            try:
                status, content = ask(self._kit, PIECE_PATH, request, PIECE_BYTES)
                if len(content) == wanted or status != http.HTTPStatus.OK:
                    break
                trouble = "an answer that is cut short"
            except (OSError, http.client.HTTPException) as error:
                trouble = reason(error)
            if left == 0:
                raise FedllmError(
                    f"the connection to the coordinator broke off ({trouble}); {self._done:,} of "
                    f"{self._release.size:,} bytes are here",
                    "give the same command again: it goes on from there",
                )
            time.sleep(_wait_s(_TRIES - 1 - left))
        require_ok(status, f"{file.name} of the run '{self._release.name}'")
        return content


def _wait_s(failures: int) -> float:
    return float(2**failures)


def _part_folder(out: Path, offer: Offered) -> Path:
    """Return the folder of what arrived so far, empty if it is of another release."""
    part = out.with_name(f".{out.name}.part")
    known = part / names.RELEASE
    if part.is_symlink() or (part.exists() and part.stat().st_uid != os.getuid()):
        raise ConfigError(f"{part} is not this user's own folder", "remove it, or change --out")
    try:
        same = read_unverified_release(known.read_bytes()).digest == offer.release.digest
    except (OSError, PeerError):
        same = False
    if not same:
        shutil.rmtree(part, ignore_errors=True)
    elif not {path.name for path in (part / names.ADAPTER).glob("*")} <= {
        file.name for file in offer.release.files
    }:
        shutil.rmtree(part)
    part.mkdir(mode=0o700, parents=True, exist_ok=True)
    part.chmod(0o700)
    write_bytes(known, offer.text.encode(), mode=0o600)
    return part


def _config_of(release: Release) -> RunConfig:
    """Read the run's configuration, without any place that its writer chose."""
    from fedllm.federation.protocol.terms import shared_config

    origin = f"the configuration of the released run '{release.name}'"
    try:
        config = shared_config(parse(RunConfig, parse_toml(release.config, origin), origin))
    except FedllmError as error:
        raise PeerError(error.message, "update fedllm here, or tell the coordinator") from None
    if config.name != release.name:
        raise PeerError("the release bears another name than its run", "ask the coordinator why")
    with reading(PeerError("the release's summary is damaged", "ask the coordinator for it anew")):
        Summary.model_validate(dict(release.summary))
    return config


def _require_base(release: Release, config: RunConfig, base: SiteModelSection) -> None:
    from fedllm.models.checkpoints import checkpoint_folder, fingerprint

    found = fingerprint(checkpoint_folder(base.path))
    if found != release.base:
        raise ConfigError(
            f"the released model belongs on the base model {release.base[:16]}, and the one in "
            f"{base.path} is {found[:16]}",
            "name the base model that the run had in [model] of the policy",
        )


def _require_adapter_of(release: Release, config: RunConfig, adapter: Path) -> None:
    """Check that the files belong on the base model, as everybody will read them who loads them."""
    from fedllm.models.contents import held_as
    from fedllm.models.saved import ABOUT

    try:
        about = read_object((adapter / ABOUT).read_bytes())
    except (OSError, ValueError):
        about = {}
    if about.get("base_fingerprint") != held_as(
        release.base, config.model.quantization, config.model.precision
    ):
        raise PeerError(
            "the adapter was not made for the base model that its release names",
            "do not use it, and tell the coordinator",
        )


def _describe(part: Path, offer: Offered, config: RunConfig, base: SiteModelSection) -> None:
    """Write what a finished run's folder has beside the adapter, with this site's own places."""
    release = offer.release
    here = config.model_copy(
        update={
            "model": config.model.model_copy(update={"path": _absolute(base.path)}),
            "engine": config.engine.model_copy(update={"device": base.device}),
        }
    )
    write_bytes(part / names.RUN_TOML, to_toml(here).encode(), mode=0o600)
    told = {**release.summary, "run": release.name, "run_id": release.run}
    write_json(part / names.SUMMARY, {**told, "release": release.digest})


def _absolute(path: str) -> str:
    return path if path.startswith("package:") else str(Path(path).absolute())


def _require_same(release: Release, out: Path) -> None:
    """Refuse a folder that holds something else than this release, whole."""
    try:
        found = read_unverified_release((out / names.RELEASE).read_bytes())
    except (OSError, PeerError):
        found = None
    if found is None or found.digest != release.digest:
        raise ConfigError(f"{out} is in use for something else", "name another folder with --out")
    for file in release.files:
        path = out / names.ADAPTER / file.name
        if not path.is_file() or file_sha256(path) != file.sha256:
            raise ConfigError(
                f"{path} is not what was fetched", f"remove the folder {out}, and fetch it again"
            )
