"""Run what does not wait for each other side by side, a process each."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass

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
    BaseException
        Of the first job that failed, when those that had begun are done.
    """
    os.environ[THREADS] = str(threads)
    waiting, done = list(jobs), set[str]()
    running: dict[Future[float], Job] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(most, mp_context=context) as pool:
        while waiting or running:
            ready = [job for job in waiting if done.issuperset(job.needs)]
            for job in ready[: most - len(running)]:
                print(f"{job.name}: begun", flush=True)
                running[pool.submit(_timed, job.work)] = job
                waiting.remove(job)
            if not running:
                raise SystemExit(f"nobody does what {waiting[0].name} needs: {waiting[0].needs}")
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                minutes = future.result() / 60
                print(f"{job.name}: done, {minutes:.1f} minutes", flush=True)
                done.add(job.name)


def _timed(work: Callable[[], None]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began
