"""The sites of a simulation: each process builds those that it is asked to be."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from flwr.app import Context

from fedllm.config import RunConfig, SitePolicy, load_run_config, load_site_policy
from fedllm.data.partition import split_into_sites
from fedllm.data.records import Record
from fedllm.data.sources import read_records
from fedllm.federation.site.files import SiteFiles
from fedllm.federation.site.model_cache import process_models
from fedllm.federation.site.site import Site
from fedllm.federation.transport.engines import partition_of
from fedllm.identity.keys import Identity
from fedllm.identity.roster import Roster


@dataclass(frozen=True)
class SimulatedSites:
    """Where a simulation keeps what its sites need; small, so that it travels to any process.

    Attributes
    ----------
    folder : Path
        The run folder, with ``run.toml``, ``policy.toml`` and the roster.
    home : Path
        Folder of what the sites keep over runs: ``ledgers/`` and ``identities/``.
    threads : int
        CPU threads of a site's training.
    started : str
        Tells one call of `simulate` from the next, so that no process answers from records
        that it read for an earlier one.
    """

    folder: Path
    home: Path
    threads: int
    started: str = field(default_factory=lambda: secrets.token_hex(8))

    def __call__(self, context: Context) -> Site:
        """Return the site that a simulated node is."""
        return _sites(self)[partition_of(context)]

    def files(self, name: str) -> SiteFiles:
        """Return where one site's ledger and private log are."""
        return SiteFiles(
            ledger=self.home / "ledgers" / f"{name}.sqlite",
            memory=self.home / "ledgers" / f"{name}.memory.json",
            log=self.folder / "sites" / f"{name}.jsonl",
        )

    def keys(self, name: str) -> Path:
        """Return the folder of one party's keys."""
        return self.home / "identities" / name


def divide(config: RunConfig) -> dict[str, list[Record]]:
    """Read the training records and deal them to sites, by name; the same in each process."""
    records = read_records(config.data.train, config.data, config.task)
    return dict(sorted(split_into_sites(records, config.data, config.seed).items()))


@lru_cache(maxsize=2)
def _sites(source: SimulatedSites) -> tuple[Site, ...]:
    import torch

    torch.set_num_threads(source.threads)
    config = load_run_config(source.folder / "run.toml")
    policy = load_site_policy(source.folder / "policy.toml")
    roster = Roster.from_json((source.folder / "roster.json").read_bytes())
    return tuple(
        _site(source, config, policy, roster, name, records)
        for name, records in divide(config).items()
    )


def _site(
    source: SimulatedSites,
    config: RunConfig,
    policy: SitePolicy,
    roster: Roster,
    name: str,
    records: list[Record],
) -> Site:
    return Site(
        identity=Identity.load(name, source.keys(name)),
        roster=roster,
        policy=policy,
        files=source.files(name),
        model_path=config.model.path,
        records=lambda task: records,
        models=process_models(),
        full_errors=True,
    )
