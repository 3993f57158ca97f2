"""What a site's own people say: begin no more rounds, or end after the one that is under way.

Each is a file in the site's state. That it is there is all that counts, whatever it is and
whatever it holds: a file that is half written, cannot be read, or is a link holds the site as well,
and nothing but its absence lets a round begin.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedllm.canonical import UNREADABLE, read_object
from fedllm.clock import utc_now
from fedllm.errors import PausedError, StorageError
from fedllm.files import write_json
from fedllm.locks import in_turn, is_held

# Held by the service as long as it runs.
LOCK = "client.lock"
_MOST_BYTES = 1 << 12


@dataclass(frozen=True)
class Held:
    """That a site is held.

    Attributes
    ----------
    since : str
        In UTC as ISO 8601; empty where the file does not tell.
    by : str
        By which way it was said; empty where the file does not tell.
    """

    since: str = ""
    by: str = ""

    @property
    def words(self) -> str:
        """What follows "paused" in a sentence; begins with a space, if it is anything."""
        since = f" since {self.since}" if self.since else ""
        return f"{since}{f', by {self.by}' if self.by else ''}"


class Brake:
    """Holds a site back as its people say; several processes may use one.

    Parameters
    ----------
    folder : Path, optional
        The site's state. Without one nobody holds it, as in a simulation.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    @property
    def paused(self) -> Held | None:
        """Whether the site is to begin no round until it is told to go on."""
        return self._held("paused.json")

    @property
    def ending(self) -> Held | None:
        """Whether its service is to end after the round that is under way."""
        return self._held("stopping.json")

    def require(self) -> None:
        """Refuse to begin a round while the site is held; looks at no record.

        Raises
        ------
        PausedError
            If it is.
        """
        if (held := self.paused) is not None:
            raise PausedError(
                f"this site is paused{held.words}",
                "use fedllm client resume --kit KIT, or the button on the site's page, to go on",
            )
        if (held := self.ending) is not None:
            raise PausedError(
                f"this site's service is to end{held.words}", "start it again when it has ended"
            )

    @contextmanager
    def beginning(self) -> Iterator[None]:
        """Begin a round in the block, unless the site is held.

        Whoever holds the site waits for the block: a round whose charge is not on disk by then is
        not begun.

        Raises
        ------
        PausedError
            If the site is held.
        """
        if self._folder is None:
            yield
            return
        with self._turn():
            self.require()
            yield

    def pause(self, by: str) -> Held:
        """Begin no round from now on; on disk when this returns."""
        return self._hold("paused.json", by)

    def end(self, by: str) -> Held | None:
        """Let the service end after the round that is under way; None where none runs."""
        if not self._service_runs():
            return None
        held = self._hold("stopping.json", by)
        if not self._service_runs():
            # It ended meanwhile, and the next one is not to end at once.
            self.ended()
            return None
        return held

    def release(self) -> bool:
        """Let rounds begin, and the service go on; tell whether it was held.

        Raises
        ------
        StorageError
            If what holds it cannot be taken away.
        """
        return any([self._take_away("paused.json"), self._take_away("stopping.json")])

    def ended(self) -> None:
        """Note that the service has ended as it was told; errors as in `release`."""
        self._take_away("stopping.json")

    def _service_runs(self) -> bool:
        return self._folder is not None and is_held(self._folder / LOCK)

    def _held(self, name: str) -> Held | None:
        if self._folder is None:
            return None
        path = self._folder / name
        try:
            kind = path.lstat().st_mode
        except FileNotFoundError:
            return None
        except OSError:
            return Held()
        return _told(path) if stat.S_ISREG(kind) else Held()

    def _hold(self, name: str, by: str) -> Held:
        if self._folder is None:
            raise StorageError("a site without a folder of its own cannot be held")
        with self._turn():
            known = self._held(name)
            if known is None:
                known = Held(utc_now(), by)
                write_json(self._folder / name, {"since": known.since, "by": known.by})
        return known

    def _take_away(self, name: str) -> bool:
        if self._folder is None or not self._folder.exists():
            return False
        with self._turn():
            try:
                (self._folder / name).unlink()
            except FileNotFoundError:
                return False
            except OSError as error:
                raise StorageError(
                    f"{self._folder / name} cannot be removed ({error.strerror})",
                    "remove it by hand: as long as it is there the site begins no round",
                ) from None
        return True

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with in_turn(self._folder / "brake.lock"):
                yield


def _told(path: Path) -> Held:
    """Read what a file tells of itself, for people; whatever is wrong with it."""
    try:
        # It may have been exchanged for a link or a pipe since it was looked at.
        opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(opened, "rb") as stream:
            value = read_object(stream.read(_MOST_BYTES))
        found = Held(value["since"], value["by"])
    except (OSError, *UNREADABLE):
        return Held()
    plain = all(isinstance(word, str) and word.isprintable() for word in (found.since, found.by))
    return found if plain and len(found.since + found.by) < 200 else Held()
