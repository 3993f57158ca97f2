"""Everything that could stop a site's first run, tried before it: ``fedllm client check``."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeVar

from clients.connection import Reached, reach_coordinator
from fedllm.config import RunConfig, SitePolicy, Task, load_site_policy, parse
from fedllm.data.records import Record
from fedllm.errors import ConfigError, FedllmError, RefusedError
from fedllm.identity.kits import Kit, read_kit

State = Literal["ok", "warning", "failed", "skipped"]

_SOON_DAYS = 30
_MIN_DISK, _GOOD_DISK = 256 << 20, 2 << 30
# The coordinator refuses a node whose signed time lies 5 s ahead of its own clock (Flower) or
# 60 s behind it (`fedllm.federation.superlink`).
_CLOCK_AHEAD_S, _CLOCK_BEHIND_S = 5.0, 60.0
_FEW_UNITS = 100

Needed = TypeVar("Needed")


@dataclass(frozen=True)
class Finding:
    """One line of the table.

    Attributes
    ----------
    check : str
        What was tried.
    state : {"ok", "warning", "failed", "skipped"}
        How it went.
    found : str
        What was found, in words that hold no text of a record.
    remedy : str
        What to do; empty when nothing has to be done.
    exit_code : int
        0, or that of the error.
    """

    check: str
    state: State
    found: str
    remedy: str = ""
    exit_code: int = 0


class _DoubtError(FedllmError):
    """Something that works today and should be seen to."""


class _SkippedError(FedllmError):
    """Something that cannot be tried before another failure is mended."""


def check_site(
    kit_folder: Path,
    policy_path: Path,
    model: str | None = None,
    announce: Callable[[str], None] = lambda check: None,
) -> list[Finding]:
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
    findings = []
    for name, function in site.all():
        announce(name)
        findings.append(_attempt(name, function))
    return findings


def _attempt(check: str, function: Callable[[], str]) -> Finding:
    try:
        return Finding(check, "ok", function())
    except _SkippedError as skipped:
        return Finding(check, "skipped", skipped.message, skipped.remedy)
    except _DoubtError as doubt:
        return Finding(check, "warning", doubt.message, doubt.remedy)
    except FedllmError as error:
        return Finding(check, "failed", error.message, error.remedy, error.exit_code)
    except Exception as error:
        # Other libraries' texts may quote a record.
        kind = type(error).__name__
        return Finding(check, "failed", f"broke off ({kind})", "tell an engineer the kind", 1)


def _needed(value: Needed | None, what: str) -> Needed:
    if value is None:
        raise _SkippedError(f"cannot be tried before {what} is in order")
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
            ("training", self.training),
            ("memory", _check_memory),
        )

    def kit(self) -> str:
        self._kit = kit = read_kit(self._folder, "site")
        return f"site '{kit.name}' of the federation '{kit.federation}'; only its owner can read it"

    def roster(self) -> str:
        roster = _needed(self._kit, "the kit").roster
        days = _days_until(roster.expires) if roster.expires else 0
        text = f"version {roster.version} with {len(roster.sites)} sites, valid for {days} days"
        if days < _SOON_DAYS:
            raise _DoubtError(text, "ask the operator for a new roster (fedllm provision renew)")
        if len(roster.sites) < roster.min_cohort:
            raise _DoubtError(
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
            raise _DoubtError("the coordinator named no time", "compare the clock by hand")
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
            raise _DoubtError(text, "remind the operator: fedllm provision renew")
        return text

    def policy(self) -> str:
        self._policy = policy = load_site_policy(self._policy_path)
        if self._policy_path.stat().st_mode & 0o022:
            raise _DoubtError(
                "other users of this machine can change the policy",
                f"run: chmod go-w {self._policy_path}",
            )
        sites = len(self._kit.roster.sites) if self._kit else policy.allow.min_cohort
        if policy.allow.min_cohort > sites:
            raise _DoubtError(
                f"allow.min_cohort is {policy.allow.min_cohort}, and the roster has {sites} "
                "sites: this site will refuse every round",
                "wait for more sites, or lower allow.min_cohort",
            )
        return (
            f"at most epsilon {policy.budget.epsilon:g} at delta {policy.budget.delta:g}, sums "
            f"of at least {policy.allow.min_cohort} sites"
        )

    def data(self) -> str:
        policy = _needed(self._policy, "the policy")
        task, records = _readable(policy)
        persons = {record.unit for record in records if record.unit is not None}
        text = f"{len(records)} records for {task}"
        if persons:
            text += f" of {len(persons)} persons"
        if task == "classification":
            text += f", {len({record.values['label'] for record in records})} labels"
        if policy.allow.unit == "person" and not persons:
            raise ConfigError(
                f"{text}, but allow.unit is 'person' and data.unit names no column",
                "name the column of the person in data.unit",
            )
        if len(persons or records) < _FEW_UNITS:
            raise _DoubtError(text, "with so few, the noise will outweigh what they teach")
        return text

    def disk(self) -> str:
        return _check_disk(self._folder)

    def ledger(self) -> str:
        return _check_ledger(_needed(self._kit, "the kit"), _needed(self._policy, "the policy"))

    def training(self) -> str:
        path = self._model
        if path is None and self._policy is not None and self._policy.model is not None:
            path = self._policy.model.path
        if path is None:
            raise _SkippedError("no base model is named", "add [model] path to the policy")
        return _check_training(path, self._policy.allow.models if self._policy else ())


def _readable(policy: SitePolicy) -> tuple[Task, list[Record]]:
    """Read the records for the first allowed task whose columns are there."""
    from fedllm.data.columns import MissingColumnError
    from fedllm.data.sources import read_records

    if policy.data is None:
        raise ConfigError("the policy names no records", "add a [data] section with train = ...")
    first: MissingColumnError | None = None
    for task in policy.allow.tasks:
        try:
            return task, read_records(policy.data.train, policy.data, task)
        except MissingColumnError as error:
            first = first or error
    raise first or ConfigError("allow.tasks is empty", "allow at least one task")


def _check_disk(folder: Path) -> str:
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".check.") as stream:
            stream.write(b"x")
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise FedllmError(
            f"{folder} cannot be written ({error.strerror or type(error).__name__})",
            "make the kit's folder writable for the user that runs the client",
        ) from None
    free = shutil.disk_usage(folder).free
    if free < _MIN_DISK:
        raise FedllmError(
            f"{_size(free)} free in {folder}", "free disk space: the ledger must be written"
        )
    if free < _GOOD_DISK:
        raise _DoubtError(f"{_size(free)} free in {folder}", "2 GiB leave room for years")
    return f"{_size(free)} free in {folder}, writable"


def _check_ledger(kit: Kit, policy: SitePolicy) -> str:
    from clients.node import site_files
    from fedllm.federation.carrying import require_carried
    from fedllm.privacy.ledger_audit import verify_ledger

    files = site_files(kit)
    require_carried(files.ledger, files.memory, kit.identity, kit.roster)
    path = files.ledger
    if not path.exists():
        return f"none yet; {path} is made in the first run"
    found = verify_ledger(path, kit.identity.public_bytes())
    if found.site != kit.name:
        raise RefusedError(
            f"{path} is the ledger of the site '{found.site}'", "put this site's ledger back"
        )
    _check_writable(path)
    spent = max((dataset.spent.value for dataset in found.datasets), default=0.0)
    text = (
        f"{found.head.sequence} entries hold; epsilon {spent:.2f} of {policy.budget.epsilon:g} "
        "is spent"
    )
    if spent >= 0.9 * policy.budget.epsilon:
        raise _DoubtError(text, "little or nothing is left; further runs will be refused")
    return text


def _check_writable(path: Path) -> None:
    try:
        with sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=10.0) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        raise FedllmError(
            f"the ledger {path} cannot be written ({error})",
            "let the user that runs the client own it, and stop other programs that hold it",
        ) from None


def _check_training(path: str, allowed: tuple[str, ...]) -> str:
    """Train one private step on made-up text; nothing of the site's records is touched."""
    from fedllm.models.checkpoints import checkpoint_folder, fingerprint, read_config

    folder = checkpoint_folder(path)
    actual = fingerprint(folder)
    if allowed and actual not in allowed:
        raise RefusedError(
            f"the model in {path} has the fingerprint {actual}, which allow.models does not list",
            "get the model that the federation agreed on, or add this fingerprint to allow.models",
        )
    base, architecture = read_config(folder)
    task: Task = "causal" if architecture.causal else "classification"
    seconds = _made_up_step(path, task, min(128, base.max_position_embeddings))
    return f"a private step on made-up text took {seconds:.1f} s; model {actual[:16]}"


def _made_up_step(path: str, task: Task, length: int) -> float:
    from fedllm.data.encode import encode
    from fedllm.models.shared import load_shared_model
    from fedllm.randomness import RandomStream
    from fedllm.training.local import LocalSettings, train_locally

    labels = ("one", "two") if task == "classification" else ()
    data = {"train": "made up", "labels": list(labels) or None}
    values = {
        "name": "check",
        "task": task,
        "model": {"path": path, "max_length": length},
        "data": data,
    }
    model = load_shared_model(parse(RunConfig, values, "check"), labels)
    text = "This sentence was made up to try one step of training. " * 8
    # One label for all: opposite ones would cancel for a tokenizer that knows none of the words.
    label = {"label": labels[0]} if labels else {}
    records = [Record({"text": f"{text}{i}"} | label, None, None, "") for i in range(8)]
    dataset = encode(records, task, model.tokenizer, length, labels)
    settings = LocalSettings(
        steps=1,
        sampling_rate=1.0,
        expected_batch_size=8.0,
        microbatch_size=8,
        optimizer="adam",
        learning_rate=1e-3,
        head_learning_rate=1e-3,
        clipping_norm=1.0,
        noise_multiplier=1.0,
    )
    started = time.monotonic()
    train_locally(model, dataset, settings, RandomStream.secure(), RandomStream.secure())
    return time.monotonic() - started


def _check_memory() -> str:
    """Compare this process's peak, which a training step just drove up, with what is free."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    free = _available_memory()
    text = f"{_size(free)} available; this check used {_size(peak)} at most"
    if free < peak:
        raise _DoubtError(text, "give the machine more memory, or stop other programs")
    return text


def _available_memory() -> int:
    """Bytes that can be taken without swapping, within the limit of a container (cgroup v2)."""
    fields = dict(
        line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line
    )
    free = int(fields["MemAvailable"].split()[0]) << 10
    limits = Path("/sys/fs/cgroup")
    try:
        limit = (limits / "memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int((limits / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return free


def _days_until(moment: datetime) -> int:
    return (moment - datetime.now(UTC)).days


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 1 << 30 else f"{size >> 20} MiB"
