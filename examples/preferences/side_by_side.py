"""Run what does not wait for each other side by side, a process each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess

# Read by torch, and by what it computes with, when they are loaded.
THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True)
class Job:
    """Something to do.

    Attributes
    ----------
    name : str
    work : callable
        Of a module, so that another process finds it.
    needs : tuple of str
        Names of jobs that must be done before.
    """

    name: str
    work: Callable[[], None]
    needs: tuple[str, ...] = ()


def side_by_side(jobs: Sequence[Job], most: int, threads: int) -> None:
    """Do all jobs, each as soon as what it needs is done and a place is free.

    Parameters
    ----------
    jobs : sequence of Job
        The first that can be done is begun first.
    most : int
        Jobs at once.
    threads : int
        CPU threads of each, and of the commands that it runs.

    Raises
    ------
    SystemExit
        If a job failed, when those that had begun are done; or if this process is told to end: the
        jobs are told too, with the commands that they run.
    """
    os.environ[THREADS] = str(threads)
    waiting, done, failed = list(jobs), set[str](), ""
    running: dict[int, tuple[Job, SpawnProcess, float]] = {}
    with _told_to_end(running):
        while running or (waiting and not failed):
            ready = [] if failed else [job for job in waiting if done.issuperset(job.needs)]
            for job in ready[: most - len(running)]:
                print(f"{job.name}: begun", flush=True)
                process = multiprocessing.get_context("spawn").Process(
                    target=_by_itself, args=(job.work,)
                )
                process.start()
                running[process.sentinel] = job, process, time.monotonic()
                waiting.remove(job)
            if not running:
                raise SystemExit(f"nobody does what {waiting[0].name} needs: {waiting[0].needs}")
            for sentinel in wait(list(running)):
                job, process, began = running.pop(sentinel)  # type: ignore[arg-type]
                process.join()
                if process.exitcode:
                    failed = failed or f"{job.name} failed; what it said stands above"
                    continue
                minutes = (time.monotonic() - began) / 60
                print(f"{job.name}: done, {minutes:.1f} minutes", flush=True)
                done.add(job.name)
    if failed:
        raise SystemExit(failed)


def _by_itself(work: Callable[[], None]) -> None:
    # Its commands are of its group, and end with it.
    os.setpgid(0, 0)
    work()


@contextmanager
def _told_to_end(running: dict[int, tuple[Job, SpawnProcess, float]]) -> Iterator[None]:
    """Inside, who ends this process ends the jobs with it."""
    earlier = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)
        for _, process, _ in running.values():
            # One that has only just begun has no group of its own yet.
            with suppress(ProcessLookupError):
                if process.pid:
                    os.killpg(process.pid, signal.SIGTERM)
            process.terminate()
        for _, process, _ in running.values():
            process.join()
