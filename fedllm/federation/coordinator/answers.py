"""Sites' answers as they come: whom to count, whom to drop, and what to say if too few are left."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from tempfile import TemporaryFile
from typing import TypeVar

from fedllm.encryption.schemes import EncryptedSum
from fedllm.errors import FedllmError, PeerError
from fedllm.federation.protocol.cohorts import CohortMember
from fedllm.federation.protocol.envelopes import verified_update
from fedllm.federation.protocol.messages import (
    Drawn,
    Joined,
    Readied,
    Recovered,
    Settled,
    Trained,
    Unmasked,
)
from fedllm.federation.protocol.round_statement import RoundStatement
from fedllm.federation.protocol.statements import require
from fedllm.identity.roster import Roster
from fedllm.privacy.ledger.entries import Head
from fedllm.privacy.ledger.heads import signed_head

_MOST_NAMES = 12

Answer = TypeVar("Answer", Joined, Drawn, Trained, Readied, Settled, Unmasked, Recovered)
Named = TypeVar("Named", Drawn, Trained, Readied, Settled, Unmasked, Recovered)


def called(answer: Joined | FedllmError, node: str, roster: Roster) -> str:
    """Return a site's name in the roster: the node's, or what the site says; else the node."""
    if isinstance(answer, FedllmError) or node in roster.sites:
        return node
    return answer.header.site if answer.header.site in roster.sites else node


def who_and_why(reasons: Iterable[tuple[str, str]], roster: Roster) -> list[tuple[str, str]]:
    """Put sites together that give the same reason, in words for people.

    Parameters
    ----------
    reasons : iterable of (str, str)
        A site's name, or that of its node, and its reason, which may begin with that name.

    Returns
    -------
    list of (str, str)
        "site A", or "2 sites (A, B)", and the reason, without names.
    """
    groups: dict[str, list[str]] = {}
    for name, reason in reasons:
        groups.setdefault(reason.removeprefix(f"{name}: "), []).append(roster.shown(name))
    return [
        (
            f"site {names[0]}" if len(names) == 1 else f"{len(names)} sites ({some_of(names)})",
            reason,
        )
        for reason, names in groups.items()
    ]


def some_of(names: Sequence[str]) -> str:
    """Return names in a row, of very many the first and how many more there are."""
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"{', '.join(names[:_MOST_NAMES])}{more}"


def joined_member(answer: Joined | FedllmError, node: str) -> CohortMember:
    """Return what a site says of itself that takes part.

    Raises
    ------
    FedllmError
        If it does not; the site's own refusal, if it gave one.
    """
    member = _unrefused(answer, node).header.member
    if member is None:
        raise PeerError(f"{node} answered neither yes nor no")
    return member


class UpdateCollector:
    """Checks each site's answer and adds its update to the sum as it arrives.

    With ``keep`` the updates are kept, too, for `leave_out`; they are masked then. ``opened`` is
    told each update that hides nothing.
    """

    def __init__(
        self,
        total: EncryptedSum,
        statement: RoundStatement,
        failures: dict[str, FedllmError],
        roster: Roster,
        heard: Callable[[str, int, int], None],
        keep: bool,
        opened: Callable[[bytes], None] | None = None,
    ) -> None:
        self.total = total
        self.survivors: list[str] = []
        self.failures = dict(failures)
        self.heads: dict[str, Head] = {}
        self.bytes_up = 0
        self.seconds = 0.0
        self._statement = statement
        self._roster = roster
        self._heard = heard
        self._kept = _KeptUpdates() if keep else None
        self._opened = opened

    def collect(self, answers: Iterator[tuple[str, Trained | FedllmError]]) -> None:
        """Take all answers; a site whose answer is refused, or that gave none, counts as dropped.

        Raises
        ------
        PeerError
            If a site answered twice, or one that was not asked.
        """
        asked = tuple(name for name in self._statement.cohort if name not in self.failures)
        for name, answer in _once(answers, asked):
            started = time.perf_counter()
            try:
                self._add(name, answer)
                self.survivors.append(name)
            except FedllmError as error:
                self.failures[name] = error
            self.seconds += time.perf_counter() - started
            done = len(self.survivors) + len(self.failures)
            self._heard(name, done, len(self._statement.cohort))
        for name in asked:
            if name not in self.failures and name not in self.survivors:
                self.failures[name] = _silent(name)

    def _add(self, name: str, answer: Trained | FedllmError) -> None:
        if isinstance(answer, Trained):
            self.bytes_up += len(answer.update)
        found = _from_site(answer, name)
        header, key = found.header, self._roster.site_key(name)
        head = signed_head(header.ledger, header.ledger_signature, key, name)
        update = verified_update(found.update, self._statement, self.total.plan, name, self._roster)
        self.total.add(update)
        if self._kept is not None:
            self._kept.add(name, update)
        if self._opened is not None:
            self._opened(update)
        self.heads[name] = head

    def leave_out(self, gone: Mapping[str, FedllmError]) -> None:
        """Take the updates of sites that went away since out of the sum."""
        if self._kept is None:
            raise RuntimeError("updates that were not kept cannot be taken out of a sum")
        for name, error in gone.items():
            self.total.remove(self._kept.read(name))
            self.survivors.remove(name)
            self.failures[name] = error


class _KeptUpdates:
    """Updates as they arrived, in a file without a name that goes away with the round."""

    def __init__(self) -> None:
        # Closed, and gone, with the round that it is of.
        self._file = TemporaryFile()  # noqa: SIM115
        self._places: dict[str, tuple[int, int]] = {}

    def add(self, name: str, update: bytes) -> None:
        self._file.seek(0, os.SEEK_END)
        self._places[name] = self._file.tell(), len(update)
        self._file.write(update)

    def read(self, name: str) -> bytes:
        start, length = self._places[name]
        self._file.seek(start)
        return self._file.read(length)


def all_answers(
    answers: Iterator[tuple[str, Named | FedllmError]], names: tuple[str, ...]
) -> dict[str, Named]:
    """Collect one good answer from each name; the round is lost if one is missing.

    Raises
    ------
    FedllmError
        What was wrong with the first answer that is not good.
    PeerError
        If a site did not answer, answered twice, or was not asked.
    """
    result = {name: _from_site(answer, name) for name, answer in _once(answers, names)}
    for name in names:
        if name not in result:
            raise _silent(name)
    return result


def good_answers(
    answers: Iterator[tuple[str, Named | FedllmError]], names: tuple[str, ...]
) -> tuple[dict[str, Named], dict[str, FedllmError]]:
    """Collect the good answers, and what was wrong with each other one.

    Raises
    ------
    PeerError
        If a site answered twice, or was not asked.
    """
    found: dict[str, Named] = {}
    failures: dict[str, FedllmError] = {name: _silent(name) for name in names}
    for name, answer in _once(answers, names):
        try:
            found[name] = _from_site(answer, name)
            del failures[name]
        except FedllmError as error:
            failures[name] = error
    return found, failures


def _once(
    answers: Iterator[tuple[str, Named | FedllmError]], names: tuple[str, ...]
) -> Iterator[tuple[str, Named | FedllmError]]:
    """Pass answers on, each of a site that was asked and has not answered before."""
    waiting = set(names)
    for name, answer in answers:
        require(name in names, f"'{name}' answered and was not asked")
        require(name in waiting, f"'{name}' answered twice")
        waiting.remove(name)
        yield name, answer


def _silent(name: str) -> PeerError:
    return PeerError(f"'{name}' did not answer", "see the site's own log")


def too_few(there: int, needed: int, failures: list[FedllmError]) -> FedllmError:
    """Return the error of a round that cannot go on: the kind that most sites failed with."""
    if not failures:
        return PeerError(
            f"{there} sites take part; rounds.min_sites is {needed}", "wait for more sites"
        )
    ((kind, _),) = Counter(type(error) for error in failures).most_common(1)
    first = next(error for error in failures if type(error) is kind)
    more = f" (and {len(failures) - 1} more sites failed)" if len(failures) > 1 else ""
    return kind(
        f"{there} sites can go on, {needed} are needed. {first.message}{more}", first.remedy
    )


def dropped_out(failures: dict[str, FedllmError]) -> FedllmError:
    """Return the error of a round whose masks stay on because sites dropped out."""
    name, error = next(iter(failures.items()))
    if isinstance(error, PeerError):
        return PeerError(
            f"{len(failures)} sites dropped out of a round whose masks need all of them; "
            f"{name}: {error.message}",
            "set encryption.recover_dropouts = true to finish such rounds without them",
        )
    return error


def _from_site(answer: Named | FedllmError, name: str) -> Named:
    found = _unrefused(answer, name)
    require(found.header.site == name, f"'{name}' answered as '{found.header.site}'")
    return found


def _unrefused(answer: Answer | FedllmError, who: str) -> Answer:
    if isinstance(answer, FedllmError):
        raise answer
    if answer.header.refusal is not None:
        raise answer.header.refusal.to_error(who)
    return answer
