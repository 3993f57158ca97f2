"""A whole federation on this machine: the same functions as in deployment, one folder a run."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from clients.app import make_client_app
from clients.simulated import SimulatedSites, divide
from fedllm.audit.report import write_report
from fedllm.config import (
    AllowSection,
    BudgetSection,
    RunConfig,
    SitePolicy,
    to_toml,
    with_absolute_locations,
)
from fedllm.data.encode import EncodedDataset, encode, label_set
from fedllm.data.records import Record
from fedllm.data.sources import read_records
from fedllm.errors import ConfigError
from fedllm.federation.authority import Authority
from fedllm.federation.flower import nodes_of, run_in_process, run_with_ray
from fedllm.federation.models import process_models
from fedllm.files import write_bytes
from fedllm.identity.keys import Identity
from fedllm.identity.roster import Roster
from fedllm.models.shared import SharedModel
from fedllm.randomness import RandomStream
from server.app import GridSites, make_server_app
from server.figures import SiteFigures
from server.loop import Loop, Workplace, make_terms, starting_state
from server.metrics import read_reports
from server.observer import Observer, PlainObserver
from server.summary import Summary, make_summary, write_summary

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
    with _locked(out):
        _check_folder(out, resume)
        threads = config.engine.threads or os.cpu_count() or 1
        torch.set_num_threads(threads)
        home = ledgers.absolute() if ledgers else out
        source = SimulatedSites(out, home, threads)
        # Bad data is found before the folder is touched.
        names = tuple(divide(config))
        model, test = _public_part(config)
        # A data URL may hold a password.
        write_bytes(out / "run.toml", to_toml(config).encode(), mode=0o600)
        write_bytes(out / "policy.toml", to_toml(policy or _open_policy(config)).encode())
        roster, authority = _parties(config, source, names)
        place = Workplace(out, model, test, roster, observer, SiteFigures(source, names, config))
        state = starting_state(config, out, model, resume)
        for warning in given_up(config):
            observer.note(f"WARNING: {warning}")

        def work(grid: Grid) -> None:
            nodes = nodes_of(grid, len(names), config.rounds.timeout_s)
            sites = GridSites(grid, nodes, config.rounds.timeout_s)
            terms = make_terms(config, model, state.run)
            final = Loop(config, place, terms, sites, authority).run(state)
            model.set_adapter(final.adapter)

        try:
            _run(engine, make_server_app(work), make_client_app(source), len(names), threads)
        finally:
            observer.close()
            authority.forget()
        model.save_adapter(out / "adapter")
        reports = read_reports(out / "metrics.jsonl")
        seconds = time.perf_counter() - started
        summary = make_summary(config, model, state.run, names, reports, seconds)
        write_summary(out, summary)
        write_report(out)
    return summary


def given_up(config: RunConfig) -> list[str]:
    """Say which protections a run does without."""
    warnings = []
    if not config.private:
        warnings.append("no differential privacy: the shared model may repeat private records")
    if config.encryption.scheme == "none":
        warnings.append("no encryption: the coordinator sees every site's update in clear")
    elif not config.encryption.masked:
        warnings.append(
            "no masks: coordinator and key authority together can read every site's update"
        )
    return warnings


def _run(
    engine: Engine, server_app: ServerApp, client_app: ClientApp, nodes: int, threads: int
) -> None:
    if engine == "ray":
        run_with_ray(server_app, client_app, nodes, threads)
    else:
        run_in_process(server_app, client_app, nodes)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"another process is working in {out}", "wait for it, or choose another --out"
            ) from None
        yield


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
    config: RunConfig, source: SimulatedSites, names: tuple[str, ...]
) -> tuple[Roster, Authority]:
    """Make the keys of parties that have none yet, and write the roster."""
    identities = {}
    for name in (*names, _AUTHORITY):
        folder = source.keys(name)
        if not folder.exists():
            Identity.generate(name).save(folder)
        identities[name] = Identity.load(name, folder)
    keys = {name: identities[name].public_bytes() for name in names}
    roster = Roster(identities[_AUTHORITY].public_bytes(), keys)
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


def _public_part(config: RunConfig) -> tuple[SharedModel, EncodedDataset | None]:
    """Load the base model and the public test set, as the coordinator has them."""
    records: list[Record] = []
    if config.data.test is not None:
        section = config.data.model_copy(update={"unit": None, "site": None, "query": None})
        records = read_records(config.data.test, section, config.task)
    classify = config.task == "classification"
    labels = label_set(config.data, records) if classify else ()
    if config.data.test_limit is not None:
        order = RandomStream.seeded(config.seed, "test records").permutation(len(records))
        records = [records[i] for i in sorted(order[: config.data.test_limit])]
    model = process_models().get(config, labels)
    if not records:
        return model, None
    length = config.model.max_length
    return model, encode(records, config.task, model.tokenizer, length, labels)
