"""A whole federation on this machine: the same functions as in deployment, one folder a run."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Literal

import torch
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedllm.config import (
    AllowSection,
    BudgetSection,
    RunConfig,
    SitePolicy,
    to_toml,
    with_absolute_locations,
)
from fedllm.data.partition import site_titles
from fedllm.errors import ConfigError
from fedllm.federation.authority.authority import Authority
from fedllm.federation.protocol.run_terms import make_terms
from fedllm.federation.transport.engines import run_in_process, run_with_ray
from fedllm.federation.transport.flower import nodes_of
from fedllm.files import write_bytes
from fedllm.identity.keys import Identity
from fedllm.identity.roster import Roster
from fedllm_client.app import make_client_app
from fedllm_client.simulated import SimulatedSites, divide
from fedllm_server.app import GridSites, make_server_app
from fedllm_server.figures import SiteFigures
from fedllm_server.loop import Loop, Workplace, starting_state
from fedllm_server.observer import Observer, PlainObserver
from fedllm_server.summary import Summary
from fedllm_server.workplace import finish, given_up, locked, public_part

Engine = Literal["inprocess", "ray"]
_AUTHORITY = "authority"


def simulate(
    config: RunConfig,
    out: Path,
    *,
    engine: Engine = "inprocess",
    resume: bool = False,
    policy: SitePolicy | None = None,
    ledgers: Path | None = None,
    observer: Observer | None = None,
) -> Summary:
    """Run a federation on this machine and leave the run folder.

    Parameters
    ----------
    config : RunConfig
        What to run.
    out : Path
        The run folder; must be new unless ``resume``.
    engine : {"inprocess", "ray"}
        What carries the messages.
    resume : bool
        Go on after the last finished round.
    policy : SitePolicy, optional
        What each site allows; by default what the run asks for and no more.
    ledgers : Path, optional
        Folder of the sites' ledgers and keys, to share budgets between runs; by default the
        run folder.
    observer : Observer, optional
        Who watches; lines on standard error by default.

    Returns
    -------
    Summary
        What stands in ``summary.json``.

    Raises
    ------
    ConfigError
        If the run folder is in use, not new, or of another configuration.
    FedllmError
        If the run fails; finished rounds are kept.
    """
    started = time.perf_counter()
    config, out = with_absolute_locations(config), out.absolute()
    observer = observer or PlainObserver()
    with locked(out):
        _check_folder(out, resume)
        threads = config.engine.threads or os.cpu_count() or 1
        torch.set_num_threads(threads)
        home = ledgers.absolute() if ledgers else out
        source = SimulatedSites(out, home, threads)
        # Bad data is found before the folder is touched.
        divided = divide(config)
        names, titles = tuple(divided), site_titles(divided)
        del divided
        model, test = public_part(config)
        # A data URL may hold a password.
        write_bytes(out / "run.toml", to_toml(config).encode(), mode=0o600)
        write_bytes(out / "policy.toml", to_toml(policy or _open_policy(config)).encode())
        roster, authority = _parties(config, source, names, titles)
        place = Workplace(out, model, test, roster, observer, SiteFigures(source, names, config))
        state = starting_state(config, out, model, resume)
        for warning in given_up(config):
            observer.note(f"WARNING: {warning}")

        def work(grid: Grid) -> None:
            nodes = nodes_of(grid, len(names), config.rounds.timeout_s)
            # Which node Ray made which site, only the sites' own answers say.
            known = names if engine == "inprocess" else [f"node {node}" for node in nodes]
            calls = dict(zip(known, nodes, strict=True))
            sites = GridSites(grid, calls, config.rounds.timeout_s)
            terms = make_terms(config, model, state.run)
            final = Loop(config, place, terms, sites, authority).run(state)
            model.set_adapter(final.adapter)

        try:
            _run(engine, make_server_app(work), make_client_app(source), names, threads)
        finally:
            observer.close()
            authority.forget()
        summary = finish(out, config, model, state.run, names, started)
    return summary


def _run(
    engine: Engine,
    server_app: ServerApp,
    client_app: ClientApp,
    names: tuple[str, ...],
    threads: int,
) -> None:
    if engine == "ray":
        run_with_ray(server_app, client_app, len(names), threads)
    else:
        run_in_process(server_app, client_app, names)


def _check_folder(out: Path, resume: bool) -> None:
    known = (out / "run.toml").exists()
    if resume and not known:
        raise ConfigError(f"there is no run to resume in {out}", "leave out --resume")
    # A run that failed before its first checkpoint may be begun again in place.
    begun = (out / "checkpoints").exists()
    foreign = not known and any(path.name != ".lock" for path in out.iterdir())
    if not resume and (begun or foreign):
        raise ConfigError(
            f"the run folder {out} is not empty",
            "go on with --resume, or choose another folder with --out",
        )


def _parties(
    config: RunConfig, source: SimulatedSites, names: tuple[str, ...], titles: dict[str, str]
) -> tuple[Roster, Authority]:
    """Make the keys of parties that have none yet, and write the roster."""
    identities = {}
    for name in (*names, _AUTHORITY):
        folder = source.keys(name)
        if not folder.exists():
            Identity.generate(name).save(folder)
        identities[name] = Identity.load(name, folder)
    keys = {name: identities[name].public_bytes() for name in names}
    roster = Roster(identities[_AUTHORITY].public_bytes(), keys, titles=titles)
    write_bytes(source.folder / "roster.json", roster.to_json().encode())
    minimum = config.rounds.min_sites
    return roster, Authority(identities[_AUTHORITY], roster, minimum, full_errors=True)


def _open_policy(config: RunConfig) -> SitePolicy:
    """Return a policy that allows exactly what the run asks for, as a simulation's default."""
    budget = BudgetSection(
        epsilon=config.privacy.epsilon or BudgetSection().epsilon, delta=config.privacy.delta
    )
    allow = AllowSection(min_cohort=1, encryption="optional", non_private=not config.private)
    return SitePolicy(budget=budget, allow=allow)
