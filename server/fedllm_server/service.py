"""The coordinator as a service: SuperLink, roster, and one run after the other."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from subprocess import Popen

from fedllm.errors import ConfigError, FedllmError, one_line
from fedllm.federation.transport.listener import Listener
from fedllm.federation.transport.superlink import SuperLink
from fedllm.files import write_json
from fedllm.identity.kits import Kit, read_kit
from fedllm.processes import end, only_one, start_module
from fedllm.runs import names
from fedllm.runs.checkpoints import newest_round
from fedllm.runs.job import Job, read_job, read_outcome, write_job
from fedllm.runs.record import read_config
from fedllm_server.jobs import all_jobs, coordinator_lock
from fedllm_server.journal import Comings
from fedllm_server.releasing import shelf_of

_POLL_S, _STATUS_S = 0.3, 2.0
_MAX_IDLE_STARTS = 5


@dataclass
class _Work:
    """The run that is being carried."""

    folder: Path
    child: Popen[bytes]
    round: int


class Service:
    """Keeps a coordinator going until it is told to stop.

    Parameters
    ----------
    kit : Kit
        The coordinator's.
    listen : (str, int)
        Host and port of the public listener.
    say : callable
        Hears what a person who reads the log should know.
    """

    def __init__(self, kit: Kit, listen: tuple[str, int], say: Callable[[str], None]) -> None:
        if kit.server_certificate is None or kit.server_key is None:
            raise ConfigError(f"the kit {kit.folder} has no server certificate", "restore it")
        self._kit = kit
        self._say = say
        self._comings = Comings(say)
        self._listener = Listener(*listen, kit.server_certificate, kit.server_key)
        self._roster_time = 0
        self._work: _Work | None = None
        self._started = datetime.now(UTC).isoformat(timespec="seconds")
        self._status_at = 0.0
        self._idle_starts: dict[Path, int] = {}
        self._not_before = 0.0

    def run(self, stop: threading.Event) -> None:
        """Serve until ``stop`` is set.

        Raises
        ------
        ConfigError
            If a coordinator is running with this kit, or cannot listen.
        FedllmError
            If the listeners died.
        """
        folder = self._kit.folder / "state"
        with only_one(coordinator_lock(self._kit.folder), "a coordinator"):
            shelf = shelf_of(self._kit.folder)
            link = SuperLink(folder / "superlink.sqlite", self._listener, shelf)
            link.close_runs()
            self._follow_roster(link)
            link.start()
            self._say(f"listening on {self._listener.host}:{link.port}")
            try:
                while not stop.wait(_POLL_S):
                    if not link.alive:
                        raise FedllmError("the listeners ended", "start the coordinator again")
                    self._step(link)
            finally:
                if self._work is not None:
                    end(self._work.child, grace_s=2.0)
                self._report(link, running=False)
                link.stop()
            self._say("stopped")

    def _step(self, link: SuperLink) -> None:
        self._follow_roster(link)
        if self._work is not None:
            self._watch(link, self._work)
        elif time.monotonic() >= self._not_before:
            self._begin(link)
        if time.monotonic() - self._status_at > _STATUS_S:
            self._report(link, running=True)

    def _follow_roster(self, link: SuperLink) -> None:
        changed = (self._kit.folder / "roster.json").stat().st_mtime_ns
        if changed == self._roster_time:
            return
        first, self._roster_time = self._roster_time == 0, changed
        try:
            self._kit = read_kit(self._kit.folder, "coordinator")
        except ConfigError as error:
            # The roster that was checked before stays in force.
            self._say(f"the new roster is not used: {error}")
            if first:
                raise
            return
        text = (self._kit.folder / "roster.json").read_text(encoding="utf-8")
        try:
            link.register(self._kit.roster.node_keys, text)
        except ConfigError as error:
            # One party's old key is no reason to leave the others without a coordinator.
            self._say(str(error))
        if not first:
            self._say(f"roster version {self._kit.roster.version} is in force")

    def _begin(self, link: SuperLink) -> None:
        for folder, job in all_jobs(self._kit.folder):
            if job.status not in ("queued", "running"):
                continue
            if (folder / names.CANCEL).exists():
                write_job(folder, replace(job, status="cancelled"))
                continue
            (folder / names.OUTCOME).unlink(missing_ok=True)
            write_job(folder, replace(job, status="running", starts=job.starts + 1))
            ticket = json.dumps(asdict(link.open_run())).encode()
            arguments = [str(self._kit.folder), str(folder)]
            child = start_module("fedllm_server.runner", arguments, ticket)
            self._work = _Work(folder, child, _round(folder))
            self._say(f"run '{job.name}': " + ("begun" if job.starts == 0 else "goes on"))
            return

    def _watch(self, link: SuperLink, work: _Work) -> None:
        cancelled = (work.folder / names.CANCEL).exists()
        if cancelled:
            end(work.child, grace_s=2.0)
        if work.child.poll() is None:
            return
        self._work = None
        link.close_runs()
        job = read_job(work.folder)
        if job is None:
            return
        ended = replace(job, status="cancelled") if cancelled else self._outcome(work, job)
        write_job(work.folder, ended)
        why = f": {ended.error['message']} -> {ended.error['remedy']}" if ended.error else ""
        self._say(one_line(f"run '{job.name}': {ended.status}{why}"))

    def _outcome(self, work: _Work, job: Job) -> Job:
        outcome = read_outcome(work.folder)
        if outcome is None:
            return self._again(work, job)
        (error,) = outcome
        return replace(job, status="failed" if error else "finished", error=error)

    def _again(self, work: _Work, job: Job) -> Job:
        """Its process died without a word: start it again, unless it never gets any further."""
        further = _round(work.folder) > work.round
        idle = 1 if further else self._idle_starts.get(work.folder, 0) + 1
        self._idle_starts[work.folder] = idle
        self._say(f"run '{job.name}': its process ended with code {work.child.returncode}")
        if idle < _MAX_IDLE_STARTS:
            self._not_before = time.monotonic() + min(2.0**idle, 30.0)
            return job
        words = f"its process died {idle} times in round {_round(work.folder) + 1}"
        remedy = "see the coordinator's log, then resume the run"
        error = {"kind": "FedllmError", "message": words, "remedy": remedy}
        return replace(job, status="failed", error=error)

    def _report(self, link: SuperLink, running: bool) -> None:
        self._status_at = time.monotonic()
        runs = [
            {**asdict(job), "round": _round(folder), "rounds": _rounds(folder)}
            for folder, job in all_jobs(self._kit.folder)
        ]
        nodes = link.nodes()
        if running:
            self._comings.look(nodes, self._kit.roster)
        status = {
            "federation": self._kit.federation,
            "address": self._kit.address,
            "roster_version": self._kit.roster.version,
            "running": running,
            "started": self._started,
            "nodes": [
                {**asdict(node), "title": self._kit.roster.titles.get(node.name)} for node in nodes
            ],
            "runs": runs,
        }
        write_json(self._kit.folder / "state" / "status.json", status)


def _round(folder: Path) -> int:
    return newest_round(folder / names.CHECKPOINTS) or 0


def _rounds(folder: Path) -> int:
    try:
        return read_config(folder).rounds.count
    except FedllmError:
        return 0
