"""Everything that could stop a site's first run, tried before it: ``fedllm client check``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from fedllm.config import SitePolicy, Task, load_site_policy
from fedllm.data.records import Record
from fedllm.errors import BudgetError, ConfigError, FedllmError, RefusedError
from fedllm.identity.kits import Kit, read_kit
from fedllm.tasks import task_of
from fedllm_client.checking import CheckResult, DoubtError, SkippedError, carry_out
from fedllm_client.connection import Reached, reach_coordinator
from fedllm_client.machine import check_disk, check_memory, check_training, check_writable

_SOON_DAYS = 30
# The coordinator refuses a node whose signed time lies 5 s ahead of its own clock (Flower) or
# 60 s behind it (`fedllm.federation.transport.listener`).
_CLOCK_AHEAD_S, _CLOCK_BEHIND_S = 5.0, 60.0
_FEW_UNITS = 100
_SHOWN_GROUPS = 12

Needed = TypeVar("Needed")


def check_site(
    kit_folder: Path,
    policy_path: Path,
    model: str | None = None,
    announce: Callable[[str], None] = lambda check: None,
) -> list[CheckResult]:
    """Try everything a site needs; one failure does not keep the others from being tried.

    Parameters
    ----------
    kit_folder, policy_path : Path
        The site's kit and its ``site.toml``.
    model : str, optional
        Where the base model lies, if not where the policy says.
    announce : callable
        Hears the name of each check before it starts.
    """
    site = _SiteCheck(kit_folder, policy_path, model)
    results = []
    for name, function in site.all():
        announce(name)
        results.append(carry_out(name, function))
    return results


def _needed(value: Needed | None, what: str) -> Needed:
    if value is None:
        raise SkippedError(f"cannot be tried before {what} is in order")
    return value


class _SiteCheck:
    """The checks in their order; what an earlier one found serves the later ones."""

    def __init__(self, kit_folder: Path, policy_path: Path, model: str | None) -> None:
        self._folder = kit_folder
        self._policy_path = policy_path
        self._model = model
        self._kit: Kit | None = None
        self._reached: Reached | None = None
        self._policy: SitePolicy | None = None

    def all(self) -> Sequence[tuple[str, Callable[[], str]]]:
        """Return names and functions."""
        return (
            ("kit", self.kit),
            ("roster", self.roster),
            ("network", self.network),
            ("clock", self.clock),
            ("registration", self.registration),
            ("certificate", self.certificate),
            ("policy", self.policy),
            ("data", self.data),
            ("disk", self.disk),
            ("ledger", self.ledger),
            ("pause", self.pause),
            ("training", self.training),
            ("memory", check_memory),
        )

    def kit(self) -> str:
        self._kit = kit = read_kit(self._folder, "site")
        who = f"site {kit.roster.shown(kit.name)} of the federation '{kit.federation}'"
        return f"{who}; only its owner can read it"

    def roster(self) -> str:
        roster = _needed(self._kit, "the kit").roster
        days = _days_until(roster.expires) if roster.expires else 0
        text = f"version {roster.version} with {len(roster.sites)} sites, valid for {days} days"
        if days < _SOON_DAYS:
            raise DoubtError(text, "ask the operator for a new roster (fedllm provision renew)")
        if len(roster.sites) < roster.min_cohort:
            raise DoubtError(
                f"{text}; a round needs {roster.min_cohort} sites",
                "nothing to do here: rounds begin when more sites have joined",
            )
        return text

    def network(self) -> str:
        kit = _needed(self._kit, "the kit")
        self._reached = reached = reach_coordinator(kit)
        return f"{kit.address} answers over {reached.protocol} with the federation's certificate"

    def clock(self) -> str:
        difference = _needed(self._reached, "the network").clock_difference_s
        if difference is None:
            raise DoubtError("the coordinator named no time", "compare the clock by hand")
        if not -_CLOCK_BEHIND_S < difference < _CLOCK_AHEAD_S:
            side = "ahead of" if difference > 0 else "behind"
            raise FedllmError(
                f"this machine's clock is {abs(difference):.0f} seconds {side} the coordinator's",
                "set the clock by NTP: the coordinator refuses nodes whose clocks differ",
            )
        return f"{abs(difference):.0f} seconds from the coordinator's"

    def registration(self) -> str:
        kit = _needed(self._kit, "the kit")
        if not _needed(self._reached, "the network").knows_this_node:
            raise RefusedError(
                f"the coordinator does not accept the node key of '{kit.name}'",
                f"if the clock is right, the coordinator lacks roster {kit.roster.version} or has "
                "a newer one that leaves this site out: ask the operator",
            )
        return f"the coordinator knows '{kit.name}'"

    def certificate(self) -> str:
        expires = _needed(self._reached, "the network").certificate_expires
        days = _days_until(expires)
        text = f"the coordinator's is valid until {expires:%Y-%m-%d} ({days} days)"
        if days < _SOON_DAYS:
            raise DoubtError(text, "remind the operator: fedllm provision renew")
        return text

    def policy(self) -> str:
        self._policy = policy = load_site_policy(self._policy_path)
        sites = policy.allow.min_cohort
        if self._kit:
            # Before so many have joined no round begins, which `roster` says.
            sites = max(len(self._kit.roster.sites), self._kit.roster.min_cohort)
        if policy.allow.min_cohort > sites:
            raise RefusedError(
                f"allow.min_cohort is {policy.allow.min_cohort}, and the federation has {sites} "
                "sites: this site will refuse every round",
                "wait for more sites, or lower allow.min_cohort",
            )
        if policy.allow.colluders and policy.allow.colluders + 2 > sites:
            raise RefusedError(
                f"allow.colluders is {policy.allow.colluders}, which takes sums of two sites more, "
                f"and the federation has {sites} sites: this site will refuse every round",
                "wait for more sites, or lower allow.colluders",
            )
        if self._policy_path.stat().st_mode & 0o022:
            raise DoubtError(
                "other users of this machine can change the policy",
                f"run: chmod go-w {self._policy_path}",
            )
        if policy.allow.min_cohort == 1:
            raise DoubtError(
                "allow.min_cohort is 1: a sum of one site is that site's own update, which its "
                "coordinator then sees",
                "set allow.min_cohort to 2, or to as many as were agreed on",
            )
        against_all = policy.budget.colluders_epsilon
        unlimited = "not limited (budget.colluders_epsilon is not set)"
        return (
            f"at most epsilon {policy.budget.epsilon:g} at delta {policy.budget.delta:g}, sums "
            f"of at least {policy.allow.min_cohort} sites; what everyone else together could learn "
            f"where noise is shared is "
            + (unlimited if against_all is None else f"at most epsilon {against_all:g}")
        )

    def data(self) -> str:
        policy = _needed(self._policy, "the policy")
        read = _readable(policy)
        (task, records), *others = read.items()
        persons = {record.unit for record in records if record.unit is not None}
        text = f"{len(records)} records for {task}"
        if persons:
            text += f" of {len(persons)} persons"
        if more := task_of(task).counted(records):
            text += f", {more}"
        text += _groups(records)
        for other, rows in others:
            if more := task_of(other).counted(rows):
                text += f"; for {other}, {more}"
        if policy.allow.unit == "person" and not persons:
            raise ConfigError(
                f"{text}, but allow.unit is 'person' and data.unit names no column",
                "name the column of the person in data.unit",
            )
        found, remedies = [text], []
        units = len(persons or records)
        if units < _FEW_UNITS:
            remedies.append("with so few, the noise will outweigh what they teach")
        if policy.budget.delta * units > 1:
            found.append(f"budget.delta {policy.budget.delta:g} is above 1 / {units}")
            remedies.append("lower budget.delta: releasing one of them at random would satisfy it")
        for doubt in (doubt for one, rows in read.items() for doubt in task_of(one).doubts(rows)):
            found.append(doubt.found)
            remedies.append(doubt.remedy)
        if remedies:
            raise DoubtError("; ".join(found), "; ".join(remedies))
        return text

    def disk(self) -> str:
        return check_disk(self._folder)

    def ledger(self) -> str:
        return _check_ledger(_needed(self._kit, "the kit"), _needed(self._policy, "the policy"))

    def pause(self) -> str:
        from fedllm.federation.site.brake import Brake

        held = Brake(_needed(self._kit, "the kit").folder / "state").paused
        if held is not None:
            raise DoubtError(
                f"this site is paused{held.words}",
                f"use fedllm client resume --kit {self._folder} to take part",
            )
        return "none: rounds may begin"

    def training(self) -> str:
        path, own = self._model, self._policy.model if self._policy else None
        if path is None:
            _needed(self._policy, "the policy")
            path = own.path if own is not None else None
        if path is None:
            raise ConfigError(
                "the policy names no base model, without which the client does not start",
                "add [model] path to the policy",
            )
        allowed = self._policy.allow.models if self._policy else ()
        return check_training(path, allowed, own.device if own is not None else None)


def _readable(policy: SitePolicy) -> dict[Task, list[Record]]:
    """Read the records for every allowed task whose columns are there, as a site that starts."""
    from fedllm.data.columns import MissingColumnError

    if policy.data is None:
        raise ConfigError("the policy names no records", "add a [data] section with train = ...")
    first: MissingColumnError | None = None
    read: dict[Task, list[Record]] = {}
    for task in policy.allow.tasks:
        try:
            read[task] = task_of(task).read(policy.data.train, policy.data)
        except MissingColumnError as error:
            first = first or error
    if not read:
        raise first or ConfigError("allow.tasks is empty", "allow at least one task")
    return read


def _groups(records: Sequence[Record]) -> str:
    """Count the records of each group that the column ``data.group`` names, if any."""
    counts = Counter(record.group for record in records if record.group is not None)
    if not counts:
        return ""
    without = len(records) - counts.total()
    rest = f", {without} of none" if without else ""
    # So many different ones may be texts, or names of persons.
    if len(counts) > min(_SHOWN_GROUPS, len(records) / 2):
        return f", {len(counts)} groups{rest}"
    return f", groups {', '.join(f'{n!r} ({c})' for n, c in counts.most_common())}{rest}"


def _check_ledger(kit: Kit, policy: SitePolicy) -> str:
    from fedllm.federation.site.carrying import require_carried
    from fedllm.federation.site.files import SiteFiles
    from fedllm.privacy.accounting.accountants import epsilon
    from fedllm.privacy.accounting.words import epsilon_text
    from fedllm.privacy.ledger.audit import read_state, verify_ledger
    from fedllm.privacy.ledger.fingerprints import Unit

    files = SiteFiles.of_kit(kit.folder)
    require_carried(files, kit.identity, kit.roster)
    path = files.ledger
    if not path.exists():
        return f"none yet; {path} is made in the first run"
    found = verify_ledger(path, kit.identity.public_bytes())
    if found.site != kit.name:
        raise RefusedError(
            f"{path} is the ledger of the site '{found.site}'", "put this site's ledger back"
        )
    check_writable(path)
    state, name = read_state(path), policy.budget.account or ""
    unit: Unit = "record" if policy.data is None or policy.data.unit is None else "person"
    others = {charge.unit for charge in state.charges(name)} - {unit}
    if others:
        raise RefusedError(
            f"{found.head.sequence} entries hold; they protect each {others.pop()}, and by the "
            f"policy's data.unit each {unit} is to be protected",
            "set data.unit as it was: any run with a ceiling will be refused",
        )
    # What the next run has to fit in, as the site itself will reckon.
    spent = epsilon(state.spent(name, unit), policy.budget.delta).value
    text = (
        f"{found.head.sequence} entries hold; epsilon {epsilon_text(spent)} of "
        f"{policy.budget.epsilon:g} is spent"
    )
    if spent >= policy.budget.epsilon:
        raise BudgetError(
            f"{text}: nothing is left, and this site will refuse every private run",
            "stop here, or let whoever answers for the records decide on a larger budget.epsilon",
        )
    if spent >= 0.9 * policy.budget.epsilon:
        raise DoubtError(text, "little is left: runs that ask for more will be refused")
    return text


def _days_until(moment: datetime) -> int:
    return (moment - datetime.now(UTC)).days
