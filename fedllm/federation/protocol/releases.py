"""A release: what a coordinator signs when it hands a run's model to the sites.

It is stored, by the coordinator and by every site that fetched it, so it is signed as canonical
JSON behind its type. It names everything that a site must agree on: the run, its configuration word
for word as the sites were ordered to train, the base model, and each file with length and SHA-256.
So two sites that compare its digest know that they were given the same model, and a site that was
given another one holds the coordinator's signature for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Protocol

from fedllm.canonical import (
    canonical_json,
    from_hex,
    labelled_json,
    read_object,
    reading,
    sha256_hex,
)
from fedllm.errors import PeerError
from fedllm.identity.keys import verify_signature

# Where a coordinator gives releases, and pieces of their files, to the nodes in its roster.
RELEASES_PATH = "/v1/fedllm/releases"
PIECE_PATH = "/v1/fedllm/release-piece"

PIECE_BYTES = 4 << 20
MAX_DOCUMENT_BYTES = 1 << 20
MAX_LIST_BYTES = 16 << 20
MAX_LISTED = 256
MAX_FILES = 32
# The largest of what any adapter is made of: layers of a base model in float32.
MAX_FILE_BYTES = 64 << 30
# Text is read whole, tensors are not.
_MAX_TEXT_BYTES = 16 << 20
_TENSORS, _TEXTS = ".safetensors", (".json", ".md")

_FORMAT = "fedllm.release.v1"
_RUN = re.compile(r"[0-9a-f]{8,64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_REMEDY = "ask the coordinator to release the run with this version of fedllm"


@dataclass(frozen=True)
class ReleasedFile:
    """One file of an adapter's folder.

    Attributes
    ----------
    name : str
        Without any folder.
    size : int
        Bytes.
    sha256 : str
        64 hexadecimal digits.
    """

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Release:
    """A model that a coordinator released.

    Attributes
    ----------
    federation : str
        Whose coordinator.
    run : str
        The run's random identifier, which stands in the sites' ledgers.
    name : str
        What people call the run.
    config : str
        The run's configuration as its sites were sent it (TOML).
    base : str
        SHA-256 of the base model's files, as sites allow models by.
    summary : mapping
        What is told of the run: the keys of ``summary.json`` that name no place and no site.
    files : tuple of ReleasedFile
        The adapter, by name.
    time : datetime
        When it was released first (UTC).
    """

    federation: str
    run: str
    name: str
    config: str
    base: str
    summary: Mapping[str, Any]
    files: tuple[ReleasedFile, ...]
    time: datetime

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def config_digest(self) -> str:
        """SHA-256 of the configuration, as a site's ledger has it with each charge."""
        return sha256_hex(self.config)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that is signed: the same at two sites that were given the same."""
        return sha256_hex(labelled_json(_FORMAT, _to_plain(self)))


class Signer(Protocol):
    """The coordinator's Ed25519 key."""

    def sign(self, message: bytes) -> bytes:
        """Return the signature of ``message``, 64 bytes."""
        ...


def sign_release(release: Release, signer: Signer) -> str:
    """Return a release as JSON, signed by the coordinator.

    Raises
    ------
    PeerError
        If it is one that `verify_release` would refuse.
    """
    _check(release)
    plain = _to_plain(release)
    signature = signer.sign(labelled_json(_FORMAT, plain)).hex()
    text = canonical_json({"format": _FORMAT, "signature": signature, "release": plain}).decode()
    if len(text) > MAX_DOCUMENT_BYTES:
        raise PeerError("the release is too large to be signed", "choose a shorter list of labels")
    return text


def verify_release(text: str | bytes, coordinator: bytes) -> Release:
    """Read a signed release.

    Parameters
    ----------
    text : str or bytes
        What `sign_release` returned, from a peer or from a file.
    coordinator : bytes
        The coordinator's public key (Ed25519, 32 bytes) in the reader's roster.

    Raises
    ------
    PeerError
        If it is damaged, of another version, names a file that is none of an adapter's, or was
        signed by any other key.
    """
    if len(text) > MAX_DOCUMENT_BYTES:
        raise PeerError("a release is too large to be one", _REMEDY)
    with reading(_damaged()):
        value = read_object(text)
        signature = from_hex(value["signature"], 64)
        message = labelled_json(_FORMAT, value["release"])
    if value.get("format") == _FORMAT:
        verify_signature(coordinator, signature, message, "the coordinator")
    return read_unverified_release(text)


def read_unverified_release(text: str | bytes) -> Release:
    """Read a release whoever signed it: for its reader's own disk; see `verify_release`.

    Raises
    ------
    PeerError
        If it is damaged, of another version, or names a file that is none of an adapter's.
    """
    with reading(_damaged()):
        value = read_object(text)
        plain, kind = value["release"], value["format"]
        if kind != _FORMAT:
            raise PeerError(
                "the release has an unknown format", "install the same version of fedllm"
            )
        release = _from_plain(plain)
        if set(value) != {"format", "release", "signature"} or _to_plain(release) != plain:
            raise ValueError("not as it was written")
    _check(release)
    return release


def read_piece_request(body: bytes) -> tuple[str, str, int]:
    """Read which piece a node asks for.

    Returns
    -------
    (str, str, int)
        Run, file and the first byte; the first two are safe names of one folder each.

    Raises
    ------
    ValueError
        If it is anything else.
    """
    value = read_object(body)
    if set(value) != {"run", "file", "offset"}:
        raise ValueError("not a request for a piece")
    run, file, offset = value["run"], value["file"], value["offset"]
    if not isinstance(run, str) or not _RUN.fullmatch(run):
        raise ValueError("not a run")
    if not isinstance(file, str) or not is_file_name(file):
        raise ValueError("not a file")
    if type(offset) is not int or not 0 <= offset < MAX_FILE_BYTES:
        raise ValueError("not an offset")
    return run, file, offset


def piece_request(run: str, file: str, offset: int) -> bytes:
    """Return what a node sends to get the piece of a file that begins at ``offset``."""
    return canonical_json({"run": run, "file": file, "offset": offset})


def is_file_name(name: str) -> bool:
    """Tell whether a file of an adapter may bear this name: no folder, hidden file or program."""
    return _NAME.fullmatch(name) is not None and name.endswith((_TENSORS, *_TEXTS))


def _check(release: Release) -> None:
    names = [file.name for file in release.files]
    bad = [name for name in names if not is_file_name(name)]
    if bad:
        raise PeerError(f"the release names a file {bad[0]!r}, which no adapter has", _REMEDY)
    # Where a file system takes both for one, the second would replace the first.
    if len({name.casefold() for name in names}) != len(names) or names != sorted(names):
        raise PeerError("the release names a file twice, or out of order", _REMEDY)
    if not 0 < len(names) <= MAX_FILES:
        raise PeerError(f"the release has {len(names)} files; an adapter has a few", _REMEDY)
    for file in release.files:
        most = MAX_FILE_BYTES if file.name.endswith(_TENSORS) else _MAX_TEXT_BYTES
        if not 0 < file.size <= most:
            raise PeerError(f"the release's {file.name} cannot have {file.size} bytes", _REMEDY)
    if not _RUN.fullmatch(release.run) or not _NAME.fullmatch(release.name):
        raise PeerError("the release is of a run whose name is none", _REMEDY)
    with reading(PeerError("the release names no base model", _REMEDY)):
        from_hex(release.base, 32)


def _to_plain(release: Release) -> dict[str, Any]:
    return {
        "federation": release.federation,
        "run": release.run,
        "name": release.name,
        "config": release.config,
        "base": release.base,
        "summary": dict(release.summary),
        "files": [vars(file) for file in release.files],
        "time": release.time.astimezone(UTC).isoformat(timespec="seconds"),
    }


def _from_plain(plain: Mapping[str, Any]) -> Release:
    texts = (plain["federation"], plain["run"], plain["name"], plain["config"])
    if not all(isinstance(text, str) for text in texts) or not isinstance(plain["summary"], dict):
        raise ValueError("not a text")
    time = datetime.fromisoformat(plain["time"])
    if time.tzinfo is None:
        raise ValueError("a time without its zone")
    files = tuple(_files(plain["files"]))
    return Release(*texts, str(plain["base"]), plain["summary"], files, time)


def _files(listed: Iterable[Mapping[str, Any]]) -> Iterable[ReleasedFile]:
    for said in listed:
        name, size, digest = said["name"], said["size"], said["sha256"]
        from_hex(digest, 32)
        if not isinstance(name, str) or type(size) is not int:
            raise ValueError("not a file")
        yield ReleasedFile(name, size, digest)


def _damaged() -> PeerError:
    return PeerError("the release is damaged", "fetch it again")
