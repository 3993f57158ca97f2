"""Membership inference on compressed models: the attack of `fedllm audit membership`.

What makes a model smaller may blur what it remembers, and on few public texts it may sharpen it.
Shadow models are whole ones, trained by the run's settings: the attacker does not practise
compression.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from fedllm.audit.attacks.results import MembershipResult
from fedllm.audit.attacks.run import attack_models, training_records, without_privacy
from fedllm.audit.attacks.sandbox import open_sandbox
from fedllm.canonical import canonical_json, sha256_hex
from fedllm.compression.report.folders import Original
from fedllm.config import RunConfig
from fedllm.data.records import Record
from fedllm.errors import ConfigError, DataError
from fedllm.models.shared import SharedModel
from fedllm.randomness import RandomStream
from fedllm.tasks import task_of

# As many of each kind at most as `fedllm audit membership` takes by itself, and as few.
_MOST, _FEWEST = 1000, 50
Heard = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Attack:
    """What is attacked with.

    Attributes
    ----------
    pairs : int
        Pairs of shadow models.
    members, others : str, optional
        Files of training records and of others; those of the run when left out.
    """

    pairs: int
    members: str | None = None
    others: str | None = None


def attacked_run(original: Original, attack: Attack) -> RunConfig:
    """Return the run whose settings shadows are trained by, on the records that are told apart.

    Raises
    ------
    ConfigError
        If there is no run, or no records to tell members from.
    """
    config = original.config
    if config is None:
        raise ConfigError(
            f"shadow models are trained by a run's settings, and {original.whole.folder} is no run",
            "give the run's folder in its place",
        )
    if attack.members is not None and attack.others is not None:
        columns = original.data.model_dump(exclude={"train", "test", "labels"})
        labels = {"labels": original.whole.labels or None}
        files = {"train": attack.members, "test": attack.others}
        data = original.data.model_validate(columns | files | labels)
        config = config.model_copy(update={"data": data})
    if config.data.test is None:
        raise ConfigError(
            "the run has no public test file, so there are no records to tell members from",
            "name files with --members and --others",
        )
    return without_privacy(config)


def check_records(config: RunConfig) -> str:
    """Read all records that may be told apart, and return what identifies them.

    Raises
    ------
    DataError
        If there are too few, or some are members and others at once.
    """
    task = task_of(config)
    sources = (task.read(config.data.train, config.site_data), task.read_public(config.data))
    _require_apart(*sources)
    told = [[sha256_hex(record.canonical()) for record in source] for source in sources]
    return sha256_hex(canonical_json({"records": told}))


def tell_apart(
    original: Original,
    config: RunConfig,
    attack: Attack,
    models: Iterable[tuple[str, SharedModel]],
    heard: Heard,
) -> MembershipResult:
    """Attack models one after the other.

    Parameters
    ----------
    config : RunConfig
        As `attacked_run` gives it.
    models : iterable of (str, SharedModel)
        Asked for one by one, when the shadows are trained.

    Raises
    ------
    ConfigError
        If the run's labels are not the released model's.
    FedllmError
        As `open_sandbox`.
    """
    stream = RandomStream.seeded(0, "membership records")
    sandbox = open_sandbox(config, _MOST, stream)
    members = training_records(config, _MOST, stream)
    if sandbox.model.labels != original.whole.labels:
        raise ConfigError(
            "the run's public test file gives other labels than the released model has",
            "name files with --members and --others",
        )
    # What the run promises: whatever is made of its model without its records keeps that.
    epsilon = None if original.config is None else original.config.privacy.epsilon

    def attacked() -> Iterator[tuple[str, float | None, SharedModel]]:
        for name, model in models:
            heard(f"{name}: membership", 0, 1)
            yield name, epsilon, model
            heard(f"{name}: membership", 1, 1)

    return attack_models(sandbox, members, sandbox.public, attack.pairs, attacked(), heard)


def _require_apart(members: list[Record], others: list[Record]) -> None:
    fewest = min(len(members), len(others))
    if fewest < _FEWEST:
        raise DataError(
            f"there are {len(members)} members and {len(others)} others to tell apart",
            f"give {_FEWEST} of each at least",
        )
    known = {record.canonical() for record in members}
    both = sum(record.canonical() in known for record in others)
    if both:
        raise DataError(
            f"{both} records are members and others at once, so nothing could tell them apart",
            "give files that have no record in common",
        )
