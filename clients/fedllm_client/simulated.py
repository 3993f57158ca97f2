"""The sites of a simulation: each process builds those that it is asked to be."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from flwr.app import Context

from fedllm.config import RunConfig, SitePolicy, load_run_config, load_site_policy
from fedllm.data.records import Record
from fedllm.federation.site.files import SiteFiles
from fedllm.federation.site.site import Site
from fedllm.federation.transport.engines import partition_of
from fedllm.files import sync_files
from fedllm.identity.keys import Identity
from fedllm.identity.roster import Roster
from fedllm.privacy.ledger.store import Sync
from fedllm.runs import names
from fedllm.tasks.cache import process_models
from fedllm.training.made_up import process_trials
from fedllm_client.dividing import divide


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
    together : bool
        Whether one process has all sites and calls `sync` before what came of a round is kept.
    started : str
        Tells one call of `simulate` from the next, so that no process answers from records
        that it read for an earlier one.
    """

    folder: Path
    home: Path
    threads: int
    together: bool = False
    started: str = field(default_factory=lambda: secrets.token_hex(8))

    def __call__(self, context: Context) -> Site:
        """Return the site that a simulated node is."""
        return _process_sites(self).site(partition_of(context))

    def files(self, name: str) -> SiteFiles:
        """Return where one site's ledger and private log are."""
        return SiteFiles(
            ledger=self.home / names.LEDGERS / f"{name}.sqlite",
            memory=self.home / names.LEDGERS / f"{name}.memory.json",
            log=self.folder / names.SITES / f"{name}.jsonl",
            sync=self._sync,
        )

    @property
    def _sync(self) -> Sync:
        # Ledgers of their own folder outlive the run, and keep every guarantee.
        if self.home != self.folder:
            return "entry"
        return "together" if self.together else "commit"

    def sync(self) -> None:
        """See that all ledgers are on disk, where no site does it.

        Raises
        ------
        StorageError
            If the disk is full or broken.
        """
        if self._sync == "together":
            sync_files(sorted((self.home / names.LEDGERS).glob("*.sqlite")))

    def keys(self, name: str) -> Path:
        """Return the folder of one party's keys."""
        return self.home / names.IDENTITIES / name


class _Sites:
    """The sites that one process was asked to be so far."""

    def __init__(self, source: SimulatedSites) -> None:
        import torch

        torch.set_num_threads(source.threads)
        self._source = source
        self._config = load_run_config(source.folder / names.RUN_TOML)
        self._policy = load_site_policy(source.folder / names.POLICY_TOML)
        self._roster = Roster.from_json((source.folder / names.ROSTER).read_text())
        self._records = list(divide(self._config).items())
        self._made: dict[int, Site] = {}

    def site(self, number: int) -> Site:
        """Return a site; made when it is first asked for."""
        if number not in self._made:
            name, records = self._records[number]
            self._made[number] = _site(
                self._source, self._config, self._policy, self._roster, name, records
            )
        return self._made[number]


@lru_cache(maxsize=2)
def _process_sites(source: SimulatedSites) -> _Sites:
    return _Sites(source)


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
        # A simulation's records come from the run's source, whatever the policy names.
        policy=policy.model_copy(update={"data": config.data}),
        files=source.files(name),
        model_path=config.model.path,
        device=config.engine.device,
        records=lambda task: records,
        models=process_models(),
        made_up=process_trials(),
        full_errors=True,
    )
