"""What a party keeps sealed below its folder ``state``, and its exchange of keys.

Whatever is sealed there can be sealed anew without knowing what it is: purpose and name alone are
bound to it. The exchange of keys replaces file after file, each at once; until the last one is done
the ring opens with the old lock and with the new one, and holds both keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Protocol

from fedllm.at_rest.keyring import Ask, Keyring, Keys, Lock, Secrets
from fedllm.at_rest.log import SealedLog, read_log, write_log
from fedllm.at_rest.sources import ask_at_terminal
from fedllm.at_rest.stream import (
    MAGIC,
    About,
    SealedError,
    is_sealed_with,
    seal,
    seal_bytes,
    unseal,
)
from fedllm.errors import ConfigError
from fedllm.files import atomic_file
from fedllm.locks import in_turn

KEYRING = "keyring.json"
LOG, SEALED_LOG = "rounds.jsonl", "rounds.sealed"
# From what a party's own secret for its files derives.
DERIVATION = "fedllm.at-rest.v1"
_LOG_ABOUT = About("site log", SEALED_LOG)


class Owner(Protocol):
    """A party's private keys."""

    def derive(self, purpose: str) -> bytes:
        """Return 32 secret bytes for one purpose."""
        ...


class Vault:
    """Sealed files of one party; opened with `Vault.of`.

    Parameters
    ----------
    state : Path
        The party's folder; names of files count from it.
    ring : Keyring
        Of the party.
    """

    def __init__(self, state: Path, ring: Keyring) -> None:
        self._state = state
        self._ring = ring
        self._seen = ring.state()
        if not ring.exists and (state / SEALED_LOG).exists():
            # Its own secret would be used from now on, which nobody asked for.
            raise ConfigError(
                f"{state / KEYRING} is gone, without which nothing sealed there opens",
                "restore it from its backup",
            )
        self.keys: Keys = ring.open()

    @classmethod
    def of(cls, state: Path, owner: Owner, ask: Ask = ask_at_terminal) -> Vault:
        """Open a party's vault.

        Parameters
        ----------
        state : Path
            The folder ``state`` of its kit.
        owner : Owner
            Its identity, whose secret opens a vault for which no keys were chosen.
        ask : callable, optional
            Asks for a passphrase.

        Raises
        ------
        SealedError
            If the keys do not open.
        ConfigError
            If the ring is damaged or gone, or its key is not where it should be.
        """
        own = owner.derive(DERIVATION)
        return cls(state, Keyring(state / KEYRING, Secrets(own, ask)))

    @property
    def chosen(self) -> bool:
        """Whether this party chose keys, so that its log is sealed too."""
        return self._ring.exists

    def write(self, path: Path, purpose: str, content: bytes) -> None:
        """Seal a file, in place of what was there.

        Raises
        ------
        StorageError
            If it cannot be written.
        SealedError
            If keys were exchanged since this vault was opened.
        """
        with self._in_turn():
            _write(path, seal([content], self.keys.current, self._about(path, purpose)))

    def sealed(self, path: Path, purpose: str, content: bytes) -> bytes:
        """Return what a file is to hold that the caller writes, as part of a folder.

        Raises
        ------
        SealedError
            If keys were exchanged since this vault was opened.
        """
        with self._in_turn():
            return seal_bytes(content, self.keys.current, self._about(path, purpose))

    def read(self, path: Path, purpose: str) -> bytes:
        """Return what `write` sealed.

        Raises
        ------
        SealedError
            If it does not open.
        OSError
            If it cannot be read.
        """
        with path.open("rb") as stream:
            return b"".join(unseal(stream, self.keys.all, self._about(path, purpose)))

    def log(self) -> SealedLog:
        """Return the sealed log, to append to."""
        return SealedLog(self._state / SEALED_LOG, self.keys.current, _LOG_ABOUT)

    def log_lines(self) -> Iterator[str]:
        """Yield the lines of the log, sealed or not.

        Raises
        ------
        SealedError
            If one does not open; those before it were yielded.
        """
        sealed, plain = self._state / SEALED_LOG, self._state / LOG
        clear = _plain_lines(plain)
        lines = read_log(sealed, self.keys.all, _LOG_ABOUT) if sealed.exists() else iter(())
        first = list(islice(lines, len(clear)))
        # Where a crash cut the first exchange off, the sealed log begins with all of the other.
        if first != clear:
            yield from clear
        yield from first
        yield from lines

    def _about(self, path: Path, purpose: str) -> About:
        return About(purpose, path.relative_to(self._state).as_posix())

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        self._state.mkdir(mode=0o700, parents=True, exist_ok=True)
        with in_turn(self._state / "keyring.lock"):
            if self._ring.state() != self._seen:
                raise SealedError(
                    "the keys of this kit's files were exchanged meanwhile", "repeat the command"
                )
            yield

    def rekey(
        self,
        lock: Lock,
        secret: bytes,
        kinds: Sequence[tuple[str, str]],
        heard: Callable[[Path], None] = lambda path: None,
    ) -> list[Path]:
        """Seal everything with a new key under a new lock, and forget the old ones.

        Whoever calls it keeps the party's service from running. Cut off at any instant, it is
        finished by calling it again with the same lock; the old lock opens everything until then.

        Parameters
        ----------
        lock : Lock
            What is to open the ring.
        secret : bytes
            Of that lock.
        kinds : sequence of (str, str)
            For each kind of sealed file a pattern below ``state``, and its purpose.
        heard : callable
            Told each file that was sealed anew.

        Returns
        -------
        list of Path
            Files of an earlier format, which stay as they are.

        Raises
        ------
        SealedError
            If a file does not open with any key; the ring keeps both locks.
        """
        left: list[Path] = []
        with self._in_turn():
            keys = self._ring.begin(lock, secret)
            for pattern, purpose in kinds:
                for path in sorted(self._state.glob(pattern)):
                    if not _is_sealed(path):
                        left.append(path)
                    elif _sealed_anew(path, keys, self._about(path, purpose)):
                        heard(path)
            if self._log_sealed_anew(keys):
                heard(self._state / SEALED_LOG)
            self._ring.finish(keys, secret)
            self._seen, self.keys = self._ring.state(), Keys((keys.current,), lock)
        return left

    def _log_sealed_anew(self, keys: Keys) -> bool:
        sealed, plain = self._state / SEALED_LOG, self._state / LOG
        texts = list(read_log(sealed, keys.all, _LOG_ABOUT)) if sealed.exists() else []
        clear = _plain_lines(plain)
        # Both are there where a crash cut the exchange off.
        if clear != texts[: len(clear)]:
            texts = clear + texts
        if texts:
            write_log(sealed, texts, keys.current, _LOG_ABOUT)
        plain.unlink(missing_ok=True)
        return bool(texts)


def _plain_lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def _is_sealed(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC


def _sealed_anew(path: Path, keys: Keys, about: About) -> bool:
    """Seal a file with the newest key, chunk by chunk; tell whether it was under another one."""
    with path.open("rb") as stream:
        if is_sealed_with(stream, keys.current, about):
            return False
        _write(path, seal(unseal(stream, keys.all, about), keys.current, about))
    return True


def _write(path: Path, parts: Iterator[bytes]) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # If a part does not open, nothing is replaced.
    with atomic_file(path, mode=0o600) as stream:
        for part in parts:
            stream.write(part)
