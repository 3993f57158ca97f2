"""One round of the protocol, its CPU time by party and phase; see `protocol.py`."""

from __future__ import annotations

import inspect
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from pkgutil import resolve_name
from typing import Any
from unittest import mock

import torch
from protocol_cohort import ROUNDS, Cohort

from fedllm.federation.authority.authority import Authority
from fedllm.federation.coordinator.cohort import gather_cohort
from fedllm.federation.site.site import Site

PHASE = {"draw": "draw", "train": "order, check", "settle": "settle", "unmask": "unmask"}
# What is told apart within training, by the functions that do it; one that a commit lacks is
# counted with the rest of the order.
INSIDE = {
    "fedllm.federation.site.site.Site._masks": "masks",
    "fedllm.encryption.masks.SiteMasks.mask_for_update": "masks",
    "fedllm.federation.site.site.encrypt_levels": "encryption",
    "fedllm.federation.site.work.SiteWork.train": "encryption",
    "fedllm.federation.site.charging.SiteAccount.reserve": "ledger",
    "fedllm.federation.site.charging.SiteAccount.commit": "ledger",
}
# What a process remembers of an attempt. Here a site's is its own, or it would find what the
# coordinator and the sites before it did.
REMEMBERED = (
    "fedllm.encryption.schemes._public_key",
    "fedllm.encryption.survivors._names",
    "fedllm.federation.protocol.cohorts._leaf",
    "fedllm.federation.protocol.round_statement._digest",
    "fedllm.federation.protocol.statements.parse_statement",
)
# Parameters of the function that derives them; where it has others, it is left as it is.
MASKS_OF_ALL_PAIRS = ["scope", "site", "private_key", "peer_keys"]


class Clock:
    """CPU seconds by phase; what is begun within a phase is taken out of it."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._open: list[str] = []
        self._last = time.process_time()

    def _turn(self) -> None:
        now = time.process_time()
        if self._open:
            self.spent[self._open[-1]] = self.spent.get(self._open[-1], 0.0) + now - self._last
        self._last = now

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what happens in the block."""
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def inside(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """Return the function, counted by itself where an order to train is what is counted."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            if not self._open or self._open[-1] != PHASE["train"]:
                return function(*args, **kwargs)
            with self.phase(name):
                return function(*args, **kwargs)

        return counted


class CountedSites:
    """The sites as the coordinator reaches them, whatever it asks them."""

    def __init__(self, sites: dict[str, Site], sample: set[str], clock: Clock) -> None:
        self._sites, self._sample, self._clock = sites, sample, clock
        self._left_out = WorkLeftOut(sample)
        self._memories = {name: OwnMemory() for name in sample}
        self.phases: dict[str, dict[str, float]] = {name: {} for name in sample}
        self.down: dict[str, int] = dict.fromkeys(sample, 0)
        self.up: dict[str, int] = dict.fromkeys(sample, 0)

    def admit(self, node: str, name: str) -> None:
        """Nodes have the names of sites."""

    def changed(self) -> bool:
        """None comes or goes."""
        return False

    def __getattr__(self, kind: str) -> Callable[..., Any]:
        def ask(request: Any, names: Any = None) -> Iterator[tuple[str, Any]]:
            # One message for all, or what makes each site's.
            alike = hasattr(request, "to_wire")
            for name in names or self._sites:
                message = request if alike else request(name)
                yield name, self._answer(kind, message, message.to_wire(), name)

        return ask

    def _answer(self, kind: str, request: Any, sent: Any, name: str) -> Any:
        if name not in self._sample:
            with self._clock.phase("a site that is not measured"), self._left_out.applied():
                answer = getattr(self._sites[name], kind)(request)
            return type(answer).from_wire(*answer.to_wire())
        before = dict(self._clock.spent)
        with self._memories[name].applied(), self._clock.phase(PHASE.get(kind, "other")):
            answer = getattr(self._sites[name], kind)(type(request).from_wire(*sent))
            replied = answer.to_wire()
        own = self.phases[name]
        for phase, seconds in self._clock.spent.items():
            more = seconds - before.get(phase, 0.0)
            # What went by before this site's turn is the coordinator's.
            if more and phase != "coordinator":
                own[phase] = own.get(phase, 0.0) + more
        self.down[name] += _size(sent)
        self.up[name] += _size(replied)
        return type(answer).from_wire(*replied)


class CountedAuthority:
    """The key authority as the coordinator reaches it."""

    def __init__(self, authority: Authority, clock: Clock) -> None:
        self._authority, self._clock = authority, clock

    def __getattr__(self, kind: str) -> Callable[[Any], Any]:
        def ask(request: Any) -> Any:
            sent = request.to_wire()
            with self._clock.phase(f"authority {kind}"):
                answer = getattr(self._authority, kind)(type(request).from_wire(*sent))
                replied = answer.to_wire()
            return type(answer).from_wire(*replied)

        return ask


class OwnMemory:
    """What one site's process would remember, by itself."""

    def __init__(self) -> None:
        self._own: list[tuple[str, Any]] = []
        for path in REMEMBERED:
            with suppress(ImportError, AttributeError):
                found = resolve_name(path)
                self._own.append((path, lru_cache(**found.cache_parameters())(found.__wrapped__)))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the process have it in the block."""
        with patched(self._own):
            yield


@contextmanager
def patched(instead: Iterable[tuple[str, Any]]) -> Iterator[None]:
    """Put other things in the place of those that paths lead to, in the block."""
    with ExitStack() as stack:
        for path, thing in instead:
            stack.enter_context(mock.patch(path, thing))
        yield


def _size(wire: tuple[str, dict[str, bytes]]) -> int:
    header, blobs = wire
    return len(header.encode()) + sum(map(len, blobs.values()))


class _Believed:
    """A public key that nothing is checked with."""

    def verify(self, *_: bytes) -> None:
        """Take any signature."""

    @classmethod
    def from_public_bytes(cls, key: bytes) -> _Believed:
        return cls()


class WorkLeftOut:
    """What a site that is not measured need not do, for nobody would notice in this process.

    It believes signatures, takes a statement as the last such site read it, and leaves out the
    masks that it shares with others that are not measured.
    """

    def __init__(self, sample: set[str]) -> None:
        self._known: dict[Any, Any] = {}
        statements = "fedllm.federation.protocol.statements"
        believing = {
            "fedllm.identity.keys.Ed25519PublicKey": lambda _: _Believed,
            f"{statements}.check_cohort": lambda _: lambda *_: None,
            f"{statements}.parse_statement": self._once,
            "fedllm.federation.protocol.messages.RoundStatement.digest": self._read_once,
            "fedllm.encryption.masks._pair_seeds": lambda derive: _with_some(derive, sample),
        }
        self._instead: list[tuple[str, Any]] = []
        for path, make in believing.items():
            with suppress(ImportError, AttributeError):
                self._instead.append((path, make(resolve_name(path))))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Leave the work out in the block."""
        with patched(self._instead):
            yield

    def _once(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def remembered(*args: Any) -> Any:
            if (function, args) not in self._known:
                self._known[function, args] = function(*args)
            return self._known[function, args]

        return remembered

    def _read_once(self, found: property) -> property:
        reading: Any = found.fget

        def remembered(statement: Any) -> Any:
            # By the object: hashing it would cost more than it saves.
            kept, value = self._known.get(id(statement), (None, None))
            if kept is not statement:
                kept, value = self._known[id(statement)] = statement, reading(statement)
            return value

        return property(remembered)


def _with_some(derive: Callable[..., Any], sample: set[str]) -> Callable[..., Any]:
    if list(inspect.signature(derive).parameters) != MASKS_OF_ALL_PAIRS:
        return derive

    def derived(scope: Any, site: str, private_key: Any, peer_keys: Any) -> Any:
        peers = {name: key for name, key in peer_keys.items() if name in sample}
        return derive(scope, site, private_key, peers)

    return derived


@contextmanager
def training_left_out(cohort: Cohort, clock: Clock) -> Iterator[None]:
    """Replace what computes on records; tell apart what goes on within an order."""

    def train(self: Any, order: Any, *_: Any) -> Any:
        from fedllm.mechanisms import LocalStatistics
        from fedllm.randomness import RandomStream

        levels = order.quantiser.quantise(cohort.update, RandomStream.secure())
        return levels, LocalStatistics(0.0, 0, 0, ())

    replaced = {
        "fedllm.federation.site.work.SiteWork.train": train,
        "fedllm.federation.site.work.SiteWork.require_trainable": lambda *_: None,
        "fedllm.federation.site.site.Site._datasets": lambda *_: mock.Mock(left_out=""),
        "fedllm.federation.site.site.Site._require_data": lambda *_: None,
    }
    with patched(replaced.items()):
        counted = []
        for path, phase in INSIDE.items():
            with suppress(ImportError, AttributeError):
                counted.append((path, clock.inside(resolve_name(path), phase)))
        with patched(counted):
            yield


def measure(sites: int, length: int, sample: int | None) -> dict[str, Any]:
    """Measure a round of ``sites`` sites and ``length`` values; ``sample`` None measures all.

    Returns
    -------
    dict
        Milliseconds of one site, of the authority and of the coordinator, those of all parties
        together, and bytes to and from one site.
    """
    torch.set_num_threads(1)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        cohort = Cohort(Path(name), sites, length)
        # The last in order, so that what a process does once has been done.
        chosen = set(list(cohort.sites)[-(sample or sites) :])
        clock = Clock()
        with training_left_out(cohort, clock):
            joining = CountedSites(cohort.sites, chosen, clock)
            members = gather_cohort(joining, cohort.terms, 1, cohort.roster, print)
            found = []
            for number in range(1, 2 if sample else ROUNDS + 1):
                clock.spent.clear()
                asked = CountedSites(cohort.sites, chosen, clock)
                counted = CountedAuthority(cohort.authority, clock)
                with clock.phase("coordinator"):
                    cohort.round(asked, counted, number, members)
                found.append(_figures(asked, dict(clock.spent), sites))
    # Of a few short rounds, the one in the middle.
    return sorted(found, key=lambda figures: figures["round_ms"])[len(found) // 2]


def _figures(asked: CountedSites, spent: dict[str, float], sites: int) -> dict[str, Any]:
    phases = dict.fromkeys(phase for own in asked.phases.values() for phase in own)
    site = {
        phase: 1e3 * statistics.median(own.get(phase, 0.0) for own in asked.phases.values())
        for phase in phases
    }
    names = {"open_round": "open", "open_sum": "open sum"}
    kinds = {phase.removeprefix("authority "): s for phase, s in spent.items() if "auth" in phase}
    authority = {names.get(kind, kind): 1e3 * seconds for kind, seconds in kinds.items()}
    coordinator = 1e3 * spent["coordinator"]
    return {
        "site_ms": site,
        "authority_ms": authority,
        "coordinator_ms": coordinator,
        "round_ms": sites * sum(site.values()) + sum(authority.values()) + coordinator,
        "bytes_down": statistics.median(asked.down.values()),
        "bytes_up": statistics.median(asked.up.values()),
    }
