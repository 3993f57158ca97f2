"""A whole federation on this machine: the same functions as in deployment, one folder a run."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fedllm.config import (
    AllowSection,
    BudgetSection,
    RunConfig,
    SitePolicy,
    load_site_policy,
    to_toml,
    with_absolute_locations,
)
from fedllm.data.partition import site_titles
from fedllm.data.records import Record
from fedllm.errors import ConfigError
from fedllm.files import make_output_folder, write_bytes
from fedllm.identity.keys import Identity
from fedllm.identity.roster import Roster
from fedllm.importing import importing
from fedllm.runs import names as files
from fedllm.runs.checkpoints import RunState, load_checkpoint
from fedllm.runs.folder import (
    check_folder,
    finished_summary,
    locked,
    require_same_model,
    require_same_public,
    require_same_run,
    write_config,
)
from fedllm.runs.observer import Observer, Observers
from fedllm.runs.progress import ProgressFile
from fedllm.runs.start import StartedFrom, starting_point
from fedllm.runs.summary import Summary
from fedllm.runs.terminal import PlainObserver
from fedllm.tasks import task_of
from fedllm.visible import visible
from fedllm_client.dividing import divide
from fedllm_server.protections import against_all_others, given_up, odd_batch, weak_delta
from fedllm_server.public_part import (
    cut_off_of_test,
    public_digest,
    public_labels,
    public_part,
    public_records,
)

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp

    from fedllm.federation.authority.authority import Authority
    from fedllm.models.shared import SharedModel
    from fedllm_client.simulated import SimulatedSites

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
    observers: Sequence[Observer] | None = None,
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
        What each site allows; by default what the run asks for and no more, or, for a run
        that goes on, what it has been until now.
    ledgers : Path, optional
        Folder of the sites' ledgers and keys, to share budgets between runs; by default the
        run folder.
    observers : sequence of Observer, optional
        Who watches besides ``progress.jsonl``; lines on standard error by default.

    Returns
    -------
    Summary
        What stands in ``summary.json``.

    Raises
    ------
    ConfigError
        If the run folder is in use, not new, or of another configuration, or this machine has
        not the device that the run names.
    FedllmError
        If the run fails; finished rounds are kept.
    """
    started = time.perf_counter()
    config, out = with_absolute_locations(config), out.absolute()
    check_folder(out, resume)
    with locked(out):
        # Whatever can be refused is refused before a file is written, and before torch is
        # imported, which takes many seconds.
        check_folder(out, resume)
        state = load_checkpoint(out / files.CHECKPOINTS) if resume else None
        if state is not None:
            require_same_run(state.config, config, out)
        people = Observers.of([PlainObserver()] if observers is None else observers)
        watching = Observers.of([people], [ProgressFile(out)])
        try:
            if (summary := finished_summary(out, config.rounds.count, state)) is not None:
                watching.note(f"{out} is finished already")
                return summary
            _require_device(config, engine)
            # Of what may still be refused, nothing is written.
            people.note("reading the records")
            sites = divide(config)
            config.require_room(len(sites))
            test, tested = public_records(config), public_digest(config)
            if state is not None:
                require_same_public(state, public_labels(config, test), tested, out)
            start = starting_point(config, state)
            home = ledgers.absolute() if ledgers else out
            make_output_folder(home, "--ledgers")
            people.note(f"loading the model {config.model.path}")
            policy = policy or _policy_of(config, out, resumed=state is not None)
            task = _Task(config, policy, out, home, engine, state, tested, start)
            return _simulate(task, sites, test, watching, started)
        finally:
            watching.close()


def _require_device(config: RunConfig, engine: Engine) -> None:
    """Refuse a GPU that is not there, before a record is read."""
    device = config.engine.device
    if device in (None, "cpu"):
        return
    if engine == "ray":
        raise ConfigError(
            f"engine.device = {device!r}: sites that Ray runs have no GPU",
            "leave out --engine ray, so that all sites share one copy of the model on the GPU, or "
            "set engine.device = 'cpu'",
        )
    from fedllm.models.device import chosen_device

    chosen_device(device)


@dataclass(frozen=True)
class _Task:
    config: RunConfig
    policy: SitePolicy
    out: Path
    home: Path
    engine: Engine
    state: RunState | None
    tested: str
    start: StartedFrom | None


def _simulate(
    task: _Task,
    records: dict[str, list[Record]],
    test: list[Record],
    watching: Observer,
    started: float,
) -> Summary:
    with importing():
        import torch

        from fedllm.adapters import adapter_of
        from fedllm.federation.protocol.terms import make_terms
        from fedllm.federation.transport.flower import nodes_of
        from fedllm_client.app import make_client_app
        from fedllm_client.simulated import SimulatedSites
        from fedllm_server.app import GridSites, make_server_app
        from fedllm_server.figures import SiteFigures
        from fedllm_server.finishing import finish
        from fedllm_server.loop import RoundLoop, Workplace
        from fedllm_server.spending import spent_before
        from fedllm_server.starting import starting_state

    config, out = task.config, task.out
    threads = config.engine.threads or os.cpu_count() or 1
    torch.set_num_threads(threads)
    in_process = task.engine == "inprocess"
    source, names = SimulatedSites(out, task.home, threads, in_process), tuple(records)
    public = public_part(config, test)
    model, encoded = public.model, public.test
    state = starting_state(config, model, task.state, task.tested, task.start)
    require_same_model(state.model, model.fingerprint, out)
    cut_off = _check_records(config, model, records)
    _write_request(task)
    roster, authority = _parties(config, source, names, site_titles(records))
    watching.note(visible(spent_before(source, names, task.policy, roster, config, task.state)))
    figures = SiteFigures(source, names, config)
    place = Workplace(out, model, encoded, roster, watching, figures, sync_sites=source.sync)
    units = _units(config, records)
    for warning in (*given_up(config), *weak_delta(config, units), *odd_batch(config, units)):
        watching.note(f"WARNING: {warning}")
    for words in filter(None, (cut_off, cut_off_of_test(encoded))):
        watching.note(words)
    if state.round < config.rounds.count:
        for words in against_all_others(config, task.policy):
            watching.note(words)
        watching.note(
            f"asking {len(names)} sites to join: each encodes its records and works out its noise"
        )

        if model.prefix.keeps:
            watching.note(
                "the first rounds take longest: what the frozen layers make of a record is "
                "computed when it is drawn for the first time, and kept"
            )

    def work(grid: Grid) -> None:
        nodes = nodes_of(grid, len(names), config.rounds.timeout_s)
        # Which node Ray made which site, only the sites' own answers say.
        known = names if in_process else [f"node {node}" for node in nodes]
        calls = dict(zip(known, nodes, strict=True))
        sites = GridSites(grid, calls, config.rounds.timeout_s)
        terms = make_terms(config, model, state.run)
        final = RoundLoop(config, place, terms, sites, authority).run(state)
        adapter_of(model).place(final.adapter)

    try:
        _run(task.engine, make_server_app(work), make_client_app(source), names, threads)
    finally:
        authority.forget()
    return finish(
        out,
        config,
        model,
        state.run,
        names,
        started,
        roster,
        simulated=True,
        colluders_epsilon=figures.against_colluders(state.run),
        started_from=state.started_from,
        public=public,
    )


def _check_records(config: RunConfig, model: SharedModel, records: dict[str, list[Record]]) -> str:
    """Refuse records that cannot be learned from: here, they are those of who started the run.

    A site leaves such records out and tells nobody but its operator. Returns how much of them is
    cut off, in words.
    """
    everyone = [record for own in records.values() for record in own]
    length = config.model.max_length
    return task_of(config).encode(everyone, model.tokenizer, length, model.labels).cut_off


def _write_request(task: _Task) -> None:
    if task.state is None:
        # Of an attempt that failed before its first checkpoint.
        (task.out / files.PROGRESS).unlink(missing_ok=True)
    write_config(task.out, task.config)
    write_bytes(task.out / files.POLICY_TOML, to_toml(task.policy).encode())


def _units(config: RunConfig, records: dict[str, list[Record]]) -> list[int]:
    if config.unit == "site":
        return [len(records)]
    if config.unit == "person":
        return [len({record.unit for record in own}) for own in records.values()]
    return [len(own) for own in records.values()]


def _run(
    engine: Engine,
    server_app: ServerApp,
    client_app: ClientApp,
    names: tuple[str, ...],
    threads: int,
) -> None:
    from fedllm.federation.transport.engines import run_in_process, run_with_ray

    if engine == "ray":
        run_with_ray(server_app, client_app, len(names), threads)
    else:
        run_in_process(server_app, client_app, names)


def _parties(
    config: RunConfig, source: SimulatedSites, names: tuple[str, ...], titles: dict[str, str]
) -> tuple[Roster, Authority]:
    """Make the keys of parties that have none yet, and write the roster."""
    from fedllm.federation.authority.authority import Authority

    identities = {}
    for name in (*names, _AUTHORITY):
        folder = source.keys(name)
        if not folder.exists():
            Identity.generate(name).save(folder)
        identities[name] = Identity.load(name, folder)
    keys = {name: identities[name].public_bytes() for name in names}
    roster = Roster(identities[_AUTHORITY].public_bytes(), keys, titles=titles)
    write_bytes(source.folder / files.ROSTER, roster.to_json().encode())
    minimum = config.rounds.min_sites
    return roster, Authority(identities[_AUTHORITY], roster, minimum, full_errors=True)


def _policy_of(config: RunConfig, out: Path, resumed: bool) -> SitePolicy:
    """Return the policy of a run for which none is given: its own, if it has begun already."""
    kept = out / files.POLICY_TOML
    return load_site_policy(kept) if resumed and kept.exists() else _open_policy(config)


def _open_policy(config: RunConfig) -> SitePolicy:
    """Return a policy that allows exactly what the run asks for, as a simulation's default."""
    budget = BudgetSection(
        epsilon=config.privacy.epsilon or BudgetSection().epsilon, delta=config.privacy.delta
    )
    allow = AllowSection(
        min_cohort=1, encryption="optional", masks="optional", non_private=not config.private
    )
    return SitePolicy(budget=budget, allow=allow)
