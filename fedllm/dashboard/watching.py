"""All runs under some folders, looked at once for everybody who asks."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from starlette.concurrency import run_in_threadpool

from fedllm.dashboard.files import Stamp, require_plain, stamp
from fedllm.dashboard.following import Follower, Seen
from fedllm.dashboard.pages import (
    Page,
    compared_sections,
    row_of,
    run_sections,
    shelf_sections,
)
from fedllm.dashboard.wording import name_of, words_of
from fedllm.errors import ConfigError, FedllmError
from fedllm.runs import names
from fedllm.runs.shelf import compare, runs_below

Value = TypeVar("Value")
_RUN_S, _LIST_S = 1.0, 2.0
MOST_COMPARED = 7
_KEPT_COMPARISONS = 16


class Shared(Generic[Value]):
    """A look that many ask for and that is taken at most every so many seconds.

    Parameters
    ----------
    look : callable
        Takes the look; in a thread of its own.
    interval_s : float
        How old what was seen may be, in seconds.
    clock : callable
        Tells the seconds.
    """

    def __init__(
        self, look: Callable[[], Value], interval_s: float, clock: Callable[[], float]
    ) -> None:
        self._look, self._interval_s, self._clock = look, interval_s, clock
        self._turn = asyncio.Lock()
        self._at = float("-inf")
        self._value: Value | None = None

    def forget(self) -> None:
        """Take the next look anew, however soon it is asked for."""
        self._at = float("-inf")

    async def now(self) -> Value:
        """Return what there is to see."""
        async with self._turn:
            value = self._value
            if value is None or self._clock() - self._at >= self._interval_s:
                value = self._value = await run_in_threadpool(self._look)
                self._at = self._clock()
            return value


class Runs:
    """The runs under some folders, by the keys that addresses name them by.

    Parameters
    ----------
    folders : sequence of Path
        Of runs, or of folders of runs; each must be there.
    clock : callable, optional
        Tells the seconds.

    Attributes
    ----------
    single : str, optional
        The key of the run that is all there is to see; None where a folder of runs was given.
    """

    def __init__(
        self, folders: Sequence[Path], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folders = [folder.absolute() for folder in folders]
        alone = len(folders) == 1 and (folders[0] / names.RUN_TOML).exists()
        self.single = self._folders[0].name if alone else None
        self._clock = clock
        self._turn = threading.Lock()
        self._followers: dict[str, Follower] = {}
        self._pages: dict[str, Shared[Page]] = {}
        self._compared: dict[tuple[str, ...], tuple[object, dict[str, str]]] = {}
        self._found: Mapping[str, Path] = {}
        self._shelf_page = Page("Runs", {})
        self.shelf = Shared(self._look_at_all, _LIST_S, clock)
        self.all = Shared(self._all, _RUN_S, clock)

    def find(self) -> Mapping[str, Path]:
        """Return the folders of all runs that there are now, by their keys."""
        with self._turn:
            base = _base(self._folders, self.single is not None)
            found = dict.fromkeys(run for folder in self._folders for run in _below(folder))
            self._found = {run.relative_to(base).as_posix(): run for run in found}
            for key, path in self._found.items():
                if key not in self._followers:
                    self._followers[key] = Follower(path)
            for key in self._followers.keys() - self._found.keys():
                del self._followers[key]
                self._pages.pop(key, None)
            return self._found

    async def page(self, key: str) -> Page | None:
        """Return the page of a run; None where there is none of that key."""
        if key not in self._followers:
            await self.shelf.now()
        follower = self._followers.get(key)
        if follower is None:
            return None
        if key not in self._pages:
            self._pages[key] = Shared(_RunLook(follower, key), _RUN_S, self._clock)
        return await self._pages[key].now()

    async def seen(self, key: str) -> Seen | None:
        """Return what a run's folder says; None where there is none of that key."""
        if key not in self._followers:
            await self.shelf.now()
        follower = self._followers.get(key)
        return None if follower is None else await run_in_threadpool(follower.look)

    async def compared(self, keys: Sequence[str]) -> Page:
        """Return the page of several finished runs beside one another.

        Raises
        ------
        ConfigError
            If there are fewer than two or too many, or one is not there or not finished.
        """
        wanted = tuple(dict.fromkeys(keys))
        if len(wanted) > MOST_COMPARED:
            raise ConfigError(
                f"{len(wanted)} runs are more than can be told apart in one drawing",
                f"choose {MOST_COMPARED} at most; `fedllm runs compare` takes more",
            )
        await self.shelf.now()
        missing = [key for key in wanted if key not in self._followers]
        if missing:
            raise ConfigError(f"there is no run {missing[0]} here", "go back to the list of runs")
        sections = await run_in_threadpool(self._compare, wanted)
        return Page("Runs compared", sections, over=True)

    def _compare(self, keys: tuple[str, ...]) -> dict[str, str]:
        folders = [self._found[key] for key in keys]
        files = (names.RUN_TOML, names.SUMMARY, names.METRICS)
        state = tuple(_stamp_of_plain(folder / name) for folder in folders for name in files)
        kept = self._compared.get(keys)
        if kept is None or kept[0] != state:
            seen = {key: self._followers[key].look() for key in keys}
            kept = state, compared_sections(compare(folders), seen)
            with self._turn:
                if len(self._compared) >= _KEPT_COMPARISONS:
                    self._compared.clear()
                self._compared[keys] = kept
        return kept[1]

    def _all(self) -> dict[str, Seen]:
        return {
            key: follower.look()
            for key in self.find()
            if (follower := self._followers.get(key)) is not None
        }

    def _look_at_all(self) -> Page:
        rows = [row_of(key, seen) for key, seen in self._all().items()]
        sections = shelf_sections(rows, ", ".join(map(str, self._folders)))
        before = self._shelf_page
        if sections != before.sections:
            said = f"{len(rows)} runs."
            self._shelf_page = Page("Runs", sections, before.revision + 1, said=said)
        return self._shelf_page


class _RunLook:
    """Looks at a run, and makes its page anew where something changed."""

    def __init__(self, follower: Follower, key: str) -> None:
        self._follower, self._key = follower, key
        self._seen: Seen | None = None
        self._page = Page("", {})

    def __call__(self) -> Page:
        seen = self._follower.look()
        if seen is not self._seen:
            sections = run_sections(seen, self._key)
            revision = self._page.revision + (sections != self._page.sections)
            over = seen.state in ("finished", "failed", "cancelled")
            far = f"{seen.done}/{seen.total} " if seen.total and not over else ""
            words = words_of(seen)
            said = (
                f"{seen.state}, {words.done} of {words.total} {words.unit}." if seen.total else ""
            )
            self._page = Page(f"{far}{name_of(seen)}", sections, revision, over, said.capitalize())
            self._seen = seen
        return self._page


def _base(folders: Sequence[Path], alone: bool) -> Path:
    """Return the folder from which keys count."""
    if len(folders) == 1:
        return folders[0].parent if alone else folders[0]
    parents = [folder.parent for folder in folders]
    return next(
        above
        for above in (parents[0], *parents[0].parents)
        if all(above in (parent, *parent.parents) for parent in parents)
    )


def _stamp_of_plain(path: Path) -> Stamp | None:
    """Return the stamp of a file that others open next.

    Raises
    ------
    ConfigError
        If it is no plain file.
    """
    try:
        require_plain(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror})", "copy the run's folder again"
        ) from None
    return stamp(path)


def _below(folder: Path) -> list[Path]:
    try:
        return list(runs_below(folder))
    except FedllmError:
        # It was there when the page was opened, and may come back.
        return []
