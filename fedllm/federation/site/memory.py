"""What a site must remember between messages, or it could be talked into doing a thing twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedllm.canonical import read_object, reading
from fedllm.errors import RefusedError, RepeatError
from fedllm.files import write_json
from fedllm.locks import in_turn


class SiteMemory:
    """For each run the last attempt that was trained, and on which survivors a site settled.

    Durable before anything is sent; several processes may use one file.

    Parameters
    ----------
    path : Path
        A JSON file of the site's own.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def used(self) -> bool:
        """Tell whether anything was ever begun."""
        return bool(self._read())

    def knows(self, run: str) -> bool:
        """Tell whether an attempt of this run was ever begun."""
        return run in self._read()

    def begin(self, run: str, attempt: int) -> None:
        """Note that an attempt of a round is being trained.

        Raises
        ------
        RepeatError
            If this attempt, or a later one, was begun before.
        """
        with self._changing(run) as entry:
            if attempt <= entry.get("attempt", 0):
                raise RepeatError(
                    f"attempt {attempt} of run {run} was trained before; a second update under "
                    "the same masks would give the first one away",
                    "ask under a new attempt",
                )
            entry.update(attempt=attempt, survivors=None)

    def settle(self, run: str, attempt: int, survivors: tuple[str, ...]) -> None:
        """Note on which survivors of the last attempt this site settles.

        Raises
        ------
        RefusedError
            If it settled on others before, or the attempt is not the last one.
        """
        with self._changing(run) as entry:
            if entry.get("attempt") != attempt:
                raise RefusedError("this site did not train in this attempt of the round")
            if entry.get("survivors") not in (None, list(survivors)):
                raise RefusedError(
                    "this site has settled on other survivors of the round",
                    "repeat the round; the coordinator named two sets",
                )
            entry["survivors"] = list(survivors)

    def settled(self, run: str, attempt: int) -> tuple[str, ...]:
        """Return the survivors on which this site settled.

        Raises
        ------
        RefusedError
            If it did not.
        """
        entry = self._read().get(run, {})
        survivors = entry.get("survivors")
        if entry.get("attempt") != attempt or survivors is None:
            raise RefusedError("this site has not settled on the survivors of this round")
        return tuple(survivors)

    def _read(self) -> dict[str, dict[str, Any]]:
        if not self._path.exists():
            return {}
        # Fail closed: a site that has forgotten must not go on as if nothing was.
        damaged = RefusedError(
            "the site's memory of its rounds is damaged",
            "the site restores the file beside its ledger from a backup",
        )
        try:
            content = self._path.read_bytes()
        except OSError:
            raise damaged from None
        with reading(damaged):
            runs = read_object(content)
            if not all(_is_entry(entry) for entry in runs.values()):
                raise damaged
        return runs

    @contextmanager
    def _changing(self, run: str) -> Iterator[dict[str, Any]]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with in_turn(self._path.with_suffix(".lock")):
            everything = self._read()
            entry = everything.setdefault(run, {})
            yield entry
            write_json(self._path, everything)


def _is_entry(entry: object) -> bool:
    if not isinstance(entry, dict) or set(entry) != {"attempt", "survivors"}:
        return False
    survivors = entry["survivors"]
    named = isinstance(survivors, list) and all(isinstance(name, str) for name in survivors)
    return type(entry["attempt"]) is int and (survivors is None or named)
