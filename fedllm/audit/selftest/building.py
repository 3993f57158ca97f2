"""How a federation of the self-test is made: keys, policies, files and records of its sites."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fedllm.audit.selftest.federation import AUTHORITY, RUN, Federation, site_files
from fedllm.audit.selftest.material import (
    PLAIN,
    RECORDS,
    SITES,
    Material,
    Unit,
    Vector,
    by_itself,
    dataset_of,
    gradients_of,
    made_up,
    start_of,
)
from fedllm.config import AllowSection, BudgetSection, RunConfig, SitePolicy, Task
from fedllm.data.records import Record
from fedllm.federation.authority.authority import Authority
from fedllm.federation.protocol.terms import make_terms
from fedllm.federation.site.site import Site
from fedllm.identity.keys import Identity
from fedllm.identity.roster import Roster
from fedllm.tasks import task_of

Records = Callable[[str], list[Record]]


@dataclass(frozen=True)
class Setting:
    """What a federation is made from beside its run's configuration.

    Attributes
    ----------
    identities : dict of str to Identity, optional
        New keys when left out.
    budget : BudgetSection, optional
        Every site's; ten times the run's epsilon when left out.
    records : callable, optional
        Returns a site's records; the made-up ones when left out.
    run : str
        The run's name among all runs.
    folder : Path, optional
        Where ledgers are; a new one when left out.
    full_errors : bool
        Whether errors leave with their whole text, as in a simulation.
    former : mapping of str to tuple of bytes
        Keys that sites had before.
    non_private : bool, optional
        Whether sites allow runs without privacy; as the run is when left out.
    """

    identities: dict[str, Identity] | None = None
    budget: BudgetSection | None = None
    records: Records | None = None
    run: str = RUN
    folder: Path | None = None
    full_errors: bool = True
    former: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict)
    non_private: bool | None = None


def new_identities() -> dict[str, Identity]:
    """Make keys for all sites and the key authority."""
    return {name: Identity.generate(name) for name in (*SITES, AUTHORITY)}


def build(material: Material, config: RunConfig, setting: Setting | None = None) -> Federation:
    """Make a federation; with ledgers and keys of its own unless the setting names some."""
    setting = setting or Setting()
    folder = setting.folder or material.new_folder()
    identities = setting.identities or new_identities()
    keys = {name: identities[name].public_bytes() for name in SITES}
    roster = Roster(identities[AUTHORITY].public_bytes(), keys, former=setting.former)
    allowed = not config.private if setting.non_private is None else setting.non_private
    budget = setting.budget or BudgetSection(epsilon=10 * (config.privacy.epsilon or 1.0))
    policy = SitePolicy(
        # Who declares an account says who is a person.
        data=config.data if budget.account else None,
        budget=budget,
        allow=AllowSection(
            masks="required" if config.encryption.masked else "optional", non_private=allowed
        ),
    )
    read = setting.records or (lambda name: records_of(name, config.task))
    records = {name: read(name) for name in SITES}

    def site(name: str) -> Site:
        return Site(
            identity=identities[name],
            roster=roster,
            policy=policy,
            files=site_files(folder, name),
            model_path=config.model.path,
            records=lambda task: records[name],
            models=material.models,
            full_errors=setting.full_errors,
        )

    model = material.models.get(config, material.labels(config))
    return Federation(
        config=config,
        folder=folder,
        identities=identities,
        roster=roster,
        sites={name: site(name) for name in SITES},
        authority=Authority(
            identities[AUTHORITY], roster, config.rounds.min_sites, full_errors=True
        ),
        terms=make_terms(config, model, setting.run),
        start=start_of(model),
        sizes={name: announced_size(config, records[name]) for name in SITES},
    )


def announced_size(config: RunConfig, records: list[Record]) -> int:
    """Return what a site has to announce of its size: three binary digits, or nothing.

    It follows from how many there are, and never from which of them are held out.
    """
    if not config.private or config.unit == "site" or config.privacy.noise != "local":
        return 0
    persons = {record.unit for record in records} - {None}
    nameless = sum(record.unit is None for record in records)
    held_out = config.evaluation.holdout if config.evaluation.every else 0.0
    # Rounded first: asked with other parts, a site tells no more.
    units = max(1, int(leading_digits(len(persons) + nameless) * (1.0 - held_out)))
    return leading_digits(units)


def leading_digits(units: int) -> int:
    """Return a whole number with all but its three leading binary digits set to zero."""
    digits = f"{units:b}"
    return int(digits[:3].ljust(len(digits), "0"), 2)


def records_of(
    name: str, task: Task = PLAIN, unit: Unit = by_itself, count: int = RECORDS
) -> list[Record]:
    """Return one site's made-up records."""
    return made_up(count, name, unit, task_of(task))


def gradients_of_sites(material: Material, config: RunConfig) -> Vector:
    """Return the gradients of all sites' records, (sites * records, P), in the sites' order."""
    model = material.model(config)
    return np.concatenate(
        [
            gradients_of(model, dataset_of(records_of(name, config.task), config, model))
            for name in SITES
        ]
    )
