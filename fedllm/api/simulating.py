"""Simulate a run from a program, at once or round by round; follow one that goes on elsewhere."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fedllm.api.configuring import config_of
from fedllm.api.run import Run
from fedllm.config import RunConfig, SitePolicy, load_site_policy
from fedllm.errors import InterruptedRunError
from fedllm.runs.metrics import RoundReport
from fedllm.runs.observer import Observer

if TYPE_CHECKING:
    from fedllm.dashboard.following import Seen

Engine = Literal["inprocess", "ray"]
_POLL_S = 0.5


def simulate(
    config: RunConfig | str | PathLike[str],
    out: str | PathLike[str] | None = None,
    *,
    resume: bool = False,
    engine: Engine = "inprocess",
    policy: SitePolicy | str | PathLike[str] | None = None,
    ledgers: str | PathLike[str] | None = None,
    on_round: Callable[[RoundReport], None] | None = None,
    observers: Sequence[Observer] = (),
    quiet: bool = False,
) -> Run:
    """Run a federation on this machine, as ``fedllm simulate`` does, and return what came of it.

    Parameters
    ----------
    config : RunConfig or path
        Of `configure`, or a ``run.toml``.
    out : path, optional
        Folder of the run; ``runs/<name>`` when left out.
    resume : bool
        Go on with a run that was broken off, after its last full round.
    engine : {"inprocess", "ray"}
        Run the sites in this process, or side by side with Ray.
    policy : SitePolicy or path, optional
        What every simulated site allows; what the run asks for when left out.
    ledgers : path, optional
        Folder of the sites' ledgers, for runs that share one budget.
    on_round : callable, optional
        Hears the figures of each round when it is done. One that fails hears no more, and the run
        goes on.
    observers : sequence of Observer, optional
        Hear all that happens.
    quiet : bool
        Show no progress on standard error.

    Raises
    ------
    FedllmError
        If the run is refused or fails; finished rounds are kept.
    InterruptedRunError
        If it was interrupted; ``resume=True`` goes on.
    """
    asked = config_of(config)
    folder = Path("runs") / asked.name if out is None else Path(out)
    rules = policy if isinstance(policy, SitePolicy) or policy is None else _policy(policy)
    from fedllm.commands.base_model import with_base_model
    from fedllm.runs.folder import check_folder
    from fedllm.runs.terminal import terminal_observer
    from fedllm_server.simulation import simulate as run_simulation

    listening = [*observers, *([_OnRound(on_round)] if on_round is not None else [])]
    if not quiet:
        listening.append(terminal_observer())
    check_folder(folder, resume)
    try:
        run_simulation(
            with_base_model(asked),
            folder,
            engine=engine,
            resume=resume,
            policy=rules,
            ledgers=None if ledgers is None else Path(ledgers),
            observers=listening,
        )
    except KeyboardInterrupt:
        raise InterruptedRunError(
            f"interrupted; finished rounds are kept in {folder}, a round that was begun stays "
            "charged",
            "go on with the same call and resume=True",
        ) from None
    return Run(folder)


def simulate_rounds(
    config: RunConfig | str | PathLike[str],
    out: str | PathLike[str] | None = None,
    *,
    resume: bool = False,
    policy: SitePolicy | str | PathLike[str] | None = None,
    ledgers: str | PathLike[str] | None = None,
    observers: Sequence[Observer] = (),
    quiet: bool = True,
) -> Iterator[RoundReport]:
    """Simulate as `simulate` does, and yield the figures of each round when it is done.

    The run goes on while the loop works on a round. Leaving the loop early stops the run; its
    finished rounds are kept, and ``resume=True`` goes on after them. `open_run` has the result.

    Yields
    ------
    RoundReport
        Of round 0, which is the evaluation before training, and of each round after it.

    Raises
    ------
    FedllmError
        See `simulate`.
    """
    told: queue.SimpleQueue[RoundReport | None] = queue.SimpleQueue()
    stop, failed = threading.Event(), list[BaseException]()

    def work() -> None:
        try:
            simulate(
                config,
                out,
                resume=resume,
                policy=policy,
                ledgers=ledgers,
                on_round=told.put,
                observers=[*observers, _Stopping(stop)],
                quiet=quiet,
            )
        except BaseException as error:
            failed.append(error)
        finally:
            told.put(None)

    working = threading.Thread(target=work, name="simulation", daemon=True)
    working.start()
    try:
        while (report := told.get()) is not None:
            yield report
    finally:
        stop.set()
        working.join()
    if failed:
        raise failed[0]


def follow(folder: str | PathLike[str]) -> Iterator[RoundReport]:
    """Yield the rounds of a run that goes on in another process, from its first to its end.

    Of a simulation, or of a coordinator's run (``KIT/state/runs/NAME``). A run that is over has its
    rounds yielded at once.

    Raises
    ------
    ConfigError
        If there is no run in the folder.
    FedllmError
        If the run failed: what ended it, and what to do.
    """
    from fedllm.dashboard.following import Follower
    from fedllm.runs.record import require_run

    place = Path(folder)
    require_run(place, finished=False)
    follower, last = Follower(place), -1
    while True:
        seen = follower.look()
        for report in seen.reports:
            if report.round > last:
                last = report.round
                yield report
        if seen.over:
            _raise_failure(seen)
            return
        time.sleep(_POLL_S)


def _raise_failure(seen: Seen) -> None:
    if seen.state == "failed":
        from fedllm.runs.job import Job
        from fedllm_server.jobs import error_of

        raise error_of(Job(seen.folder.name, "failed", "", error=dict(seen.error) or None))


def _policy(path: str | PathLike[str]) -> SitePolicy:
    return load_site_policy(Path(path))


class _OnRound(Observer):
    def __init__(self, hear: Callable[[RoundReport], None]) -> None:
        self._hear = hear

    def finished_round(self, report: RoundReport) -> None:
        """Pass the figures on."""
        self._hear(report)


class _Stopping(Observer):
    """Stops a run at the next thing that happens in it, as Ctrl-C would."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop

    def _look(self) -> None:
        if self._stop.is_set():
            raise KeyboardInterrupt

    def site_answered(self, round: int, site: str, answered: int, sites: int) -> None:
        """Look."""
        self._look()

    def answering(self, round: int, phase: str, answered: int, asked: int | None) -> None:
        """Look."""
        self._look()

    def finished_round(self, report: RoundReport) -> None:
        """Look."""
        self._look()
