"""The process that works for a site or the key authority: kit and policy in, messages answered.

Started by ``fedllm client start`` and ``fedllm authority start``, which keep it running. It
imports nothing but the installed package; what the coordinator sends is data.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.clientapp import ClientApp

from fedllm.at_rest.sources import nobody
from fedllm.at_rest.vault import Vault
from fedllm.config import SitePolicy, Task, load_site_policy
from fedllm.errors import ConfigError, DataError, FedllmError
from fedllm.federation.site.brake import Brake
from fedllm.federation.site.files import SiteFiles
from fedllm.federation.site.service import ServiceNote
from fedllm.federation.transport.node import PartyNode
from fedllm.identity.kits import Kit, check_dates, read_kit
from fedllm.identity.roster import verify_roster
from fedllm.importing import importing
from fedllm.processes import die_with_parent, keep_memory_private, say, stop_on_signals
from fedllm_client.app import make_authority_app, make_client_app
from fedllm_client.connection import fetch_roster
from fedllm_client.machine import SITE_KEY

if TYPE_CHECKING:
    from fedllm.data.records import Record
    from fedllm.federation.authority.authority import Authority
    from fedllm.federation.site.site import Site

_ROSTER_POLL_S, _WATCH_S, _HEED_S = 20.0, 2.0, 0.5


def deployed_site(kit: Kit, policy: SitePolicy) -> Site:
    """Build the site of a kit and a policy; imports what training needs.

    Raises
    ------
    ConfigError
        If the policy does not name the site's data and base model, or names a GPU that this
        machine lacks.
    """
    if policy.data is None or policy.model is None:
        raise ConfigError(
            "the policy does not name the site's records and base model",
            "add [data] and [model]; see examples/deployment/site.toml",
        )
    # A key authority needs neither torch nor the time to import it.
    with importing():
        from fedllm.federation.site.journal import Journal
        from fedllm.federation.site.site import Site
        from fedllm.models.device import chosen_device
        from fedllm.tasks import task_of
        from fedllm.tasks.cache import process_models

    data = policy.data
    # Before a record is read.
    chosen_device(policy.model.device, SITE_KEY)

    def records(task: Task) -> list[Record]:
        return task_of(task).read(data.train, data)

    return Site(
        identity=kit.identity,
        roster=kit.roster,
        policy=policy,
        files=_files_of(kit),
        model_path=policy.model.path,
        device=policy.model.device,
        records=records,
        models=process_models(),
        journal=Journal(say),
    )


def _files_of(kit: Kit) -> SiteFiles:
    """Return a site's files, its log sealed where its operator chose keys.

    Raises
    ------
    SealedError, ConfigError
        If the keys do not open.
    """
    files = SiteFiles.of_kit(kit.folder)
    vault = Vault.of(kit.folder / "state", kit.identity, nobody)
    return replace(files, sealed_log=vault.log()) if vault.chosen else files


def started_site(
    kit: Kit, policy: SitePolicy, note: Callable[[tuple[Task, ...]], None] = lambda tasks: None
) -> Site:
    """Build a site and read its records, before any message is answered.

    What is wrong with a record ends this process, and is told to the site's operator alone: a
    refusal later would tell it to the coordinator. ``note`` hears for which tasks they are read.
    """
    site = deployed_site(kit, policy)
    tasks = site.start()
    note(tasks)
    left = [task for task in policy.allow.tasks if task not in tasks]
    say(f"the records are read, for {' and '.join(tasks)}")
    if left:
        say(f"not offered, for want of the columns: {', '.join(left)}")
    return site


def deployed_authority(kit: Kit) -> Authority:
    """Build the key authority of a kit: durable log, keys in a process of their own."""
    from fedllm.encryption.key_process import SecretKeyProcess
    from fedllm.federation.authority.authority import Authority
    from fedllm.federation.authority.round_log import RoundLog, round_log_path

    return Authority(
        kit.identity,
        kit.roster,
        kit.roster.min_cohort,
        make_key=SecretKeyProcess.generate,
        opened=RoundLog(round_log_path(kit.folder), kit.identity),
        say=say,
    )


def serve(
    kit: Kit,
    app: ClientApp,
    stop: threading.Event,
    linked: Callable[[bool], None] = lambda connected: None,
) -> None:
    """Keep a node connected until ``stop`` is set or its roster changes on disk.

    ``linked`` is told whenever the connection stands or is lost.
    """
    if kit.node_key is None:
        raise ConfigError(f"the kit {kit.folder} has no node key", "restore it from its backup")
    node = PartyNode(kit.address, kit.ca_certificate, kit.node_key, app, say, linked)
    threading.Thread(target=_watch, args=(kit, stop), daemon=True).start()
    threading.Thread(target=_keep_roster, args=(kit, stop), daemon=True).start()
    node.serve(stop)


def _keep_roster(kit: Kit, stop: threading.Event) -> None:
    """Install a newer roster when the coordinator has one; `_watch` then starts anew with it."""
    complained = ""
    while not stop.is_set():
        complaint = ""
        try:
            take_roster(kit)
        except FedllmError as error:
            complaint = f"the coordinator's roster is not used: {error}"
        except Exception as error:
            # This thread must live: without it no revocation would ever arrive.
            complaint = f"the coordinator's roster is not used ({type(error).__name__})"
        # The same complaint again and again would hide what matters.
        if complaint and complaint != complained:
            say(complaint)
        complained = complaint
        stop.wait(_ROSTER_POLL_S)


def take_roster(kit: Kit) -> bool:
    """Fetch the coordinator's roster, and install it if it is newer; tell whether it was.

    Raises
    ------
    PeerError, RefusedError
        If it is not one that `Kit.install_roster` accepts.
    FedllmError
        If it cannot be written.
    """
    try:
        text = fetch_roster(kit)
    except FedllmError:
        # The node itself says when there is no connection.
        return False
    if verify_roster(text, kit.root).version <= kit.roster.version:
        return False
    kit.install_roster(text)
    return True


def _watch(kit: Kit, stop: threading.Event) -> None:
    """Stop the node when its roster is replaced or expires; it starts again if it can.

    Asks nobody: a coordinator that holds a revocation back gains the time to the expiry and
    no more, however long this process runs and however slowly it is answered.
    """
    roster = kit.folder / "roster.json"
    before = roster.stat().st_mtime_ns
    while not stop.wait(_WATCH_S):
        try:
            check_dates(kit.roster, "the roster")
        except ConfigError as error:
            say(str(error))
            stop.set()
        if roster.exists() and roster.stat().st_mtime_ns != before:
            say("the roster was replaced; starting again with it")
            stop.set()


def heed(brake: Brake, site: Future[Site], stop: threading.Event) -> None:
    """Stop the node when the site's people want its service to end, or let it go on after a pause.

    A round that the site is in is ended first. After a pause the process starts anew, so that the
    coordinator asks the site again whether it takes part.
    """
    before, was_held = (False, False), False
    while not stop.wait(_HEED_S):
        now = brake.paused is not None, brake.ending is not None
        if now != before:
            say(_told(*now))
        before, was_held = now, was_held or any(now)
        over = now[1] or (was_held and not any(now))
        if over and not _in_a_round(site):
            if not now[1]:
                say("connecting again, so that the coordinator asks this site anew")
            stop.set()


def _told(paused: bool, ending: bool) -> str:
    if ending:
        return "the service was told to end, and does after the round that is under way"
    return "paused: no round is begun until the site goes on" if paused else "the site goes on"


def _in_a_round(site: Future[Site]) -> bool:
    return site.done() and site.exception() is None and site.result().busy


def _work_for_site(kit: Kit, policy: Path, stop: threading.Event) -> None:
    """Answer for a site until told to stop.

    Raises
    ------
    FedllmError
        If the policy or the records cannot be read.
    """
    state = kit.folder / "state"
    found, note = load_site_policy(policy), ServiceNote(state, policy)
    # The connection does not wait for torch; the first message does.
    site = ThreadPoolExecutor(1).submit(started_site, kit, found, note.reads)
    site.add_done_callback(lambda done: stop.set() if done.exception() else None)
    threading.Thread(target=heed, args=(Brake(state), site, stop), daemon=True).start()
    serve(kit, make_client_app(lambda context: site.result()), stop, note.linked)
    if site.done() and (error := site.exception()) is not None:
        raise error


def main() -> None:
    """Work for a party; the arguments are PARENT ROLE KIT [POLICY]."""
    parent, role, folder, *rest = sys.argv[1:]
    keep_memory_private()
    die_with_parent(int(parent))
    stop = stop_on_signals()
    try:
        if role == "site":
            _work_for_site(read_kit(Path(folder), "site"), Path(rest[0]), stop)
        else:
            kit = read_kit(Path(folder), "authority")
            serve(kit, make_authority_app(deployed_authority(kit)), stop)
    except DataError as error:
        say(f"fedllm: {error}")
        # A source may come back, or be mended: the parent tries again.
        sys.exit(1)
    except FedllmError as error:
        say(f"fedllm: {error}")
        sys.exit(error.exit_code)
    except Exception as error:
        # Another library's words may quote a record.
        say(f"fedllm: the process broke off ({type(error).__name__})")
        sys.exit(1)


if __name__ == "__main__":
    main()
