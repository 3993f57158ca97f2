"""The process that carries one run of a deployment; it may die at any moment and start again."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from fedllm.config import load_run_config
from fedllm.errors import FedllmError
from fedllm.federation.protocol.refusals import Refusal
from fedllm.federation.transport.flower import GridPresence
from fedllm.federation.transport.superlink import Ticket, grid_of
from fedllm.files import write_json
from fedllm.identity.kits import Kit, read_kit
from fedllm.processes import die_with_parent, keep_memory_private, say


def carry(kit: Kit, folder: Path, ticket: Ticket) -> None:
    """Carry a run from its newest checkpoint to its end.

    Raises
    ------
    FedllmError
        If the run fails; finished rounds are kept.
    """
    # The grid first: it tells the SuperLink that this process lives while torch is imported.
    with grid_of(ticket) as grid:
        import torch

        from fedllm.federation.protocol.run_terms import make_terms
        from fedllm_server.fleet import FleetAuthority, FleetSites
        from fedllm_server.journal import JournalObserver
        from fedllm_server.loop import Loop, Workplace, starting_state
        from fedllm_server.observer import FileObserver
        from fedllm_server.workplace import finish, given_up, locked, public_part

        began = time.perf_counter()
        config = load_run_config(folder / "run.toml")
        torch.set_num_threads(config.engine.threads or os.cpu_count() or 1)
        observer = JournalObserver(FileObserver(folder / "progress.jsonl"), config.name, say)
        with locked(folder):
            for warning in given_up(config):
                observer.note(f"WARNING: {warning}")
            model, test = public_part(config)
            place = Workplace(
                folder, model, test, kit.roster, observer, lambda run, number: ({}, {})
            )
            state = starting_state(config, folder, model, resume=True)
            presence, wait_s = GridPresence(grid), config.rounds.timeout_s
            keys = dict(kit.roster.node_keys)
            authority = FleetAuthority(grid, presence, keys.pop("authority"), wait_s, observer.note)
            sites = FleetSites(grid, presence, keys, config.rounds.min_sites, wait_s, observer.note)
            loop = Loop(config, place, make_terms(config, model, state.run), sites, authority)
            final = loop.run(state)
            model.set_adapter(final.adapter)
            finish(folder, config, model, state.run, tuple(sorted(loop.names)), began)


def main() -> None:
    """Carry a run; the arguments are PARENT KIT FOLDER, the ticket comes on standard input."""
    parent, kit_folder, folder = sys.argv[1:]
    keep_memory_private()
    die_with_parent(int(parent))
    ticket = Ticket(**json.load(sys.stdin))
    outcome = Path(folder) / "outcome.json"
    try:
        carry(read_kit(Path(kit_folder), "coordinator"), Path(folder), ticket)
        write_json(outcome, {"error": None})
    except FedllmError as error:
        write_json(outcome, {"error": Refusal.of(error, full_text=True).model_dump()})
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
