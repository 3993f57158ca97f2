"""The process that carries one run of a deployment; it may die at any moment and start again."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from fedllm.errors import FedllmError
from fedllm.federation.protocol.refusals import Refusal
from fedllm.federation.transport.flower import GridPresence
from fedllm.federation.transport.superlink import Ticket, grid_of
from fedllm.files import write_bytes
from fedllm.identity.kits import Kit, read_kit
from fedllm.importing import importing
from fedllm.processes import die_with_parent, keep_memory_private, say
from fedllm.runs import names
from fedllm.runs.checkpoints import load_checkpoint
from fedllm.runs.folder import (
    finished_summary,
    locked,
    require_same_model,
    require_same_public,
    require_same_run,
)
from fedllm.runs.job import write_outcome
from fedllm.runs.observer import Observers
from fedllm.runs.progress import ProgressFile
from fedllm.runs.record import read_config
from fedllm.runs.start import starting_point
from fedllm_server.protections import against_all_others, given_up
from fedllm_server.public_part import (
    cut_off_of_test,
    public_digest,
    public_labels,
    public_part,
    public_records,
)
from fedllm_server.sealing import vault_of


def carry(kit: Kit, folder: Path, ticket: Ticket) -> None:
    """Carry a run from its newest checkpoint to its end.

    Raises
    ------
    FedllmError
        If the run fails; finished rounds are kept.
    """
    # The grid first: it tells the SuperLink that this process lives while torch is imported.
    with grid_of(ticket) as grid:
        with importing():
            import torch

            from fedllm.adapters import adapter_of
            from fedllm.federation.protocol.terms import make_terms
            from fedllm_server.finishing import finish, known_sites
            from fedllm_server.journal import JournalObserver
            from fedllm_server.loop import RoundLoop, Workplace
            from fedllm_server.remote_parties import RemoteAuthority, RemoteSites
            from fedllm_server.starting import starting_state

        began = time.perf_counter()
        config = read_config(folder)
        torch.set_num_threads(config.engine.threads or os.cpu_count() or 1)
        journal = JournalObserver(config.name, say)
        watching = Observers.of([ProgressFile(folder), journal])
        with locked(folder, "--kit"):
            vault = vault_of(kit.folder)
            found = load_checkpoint(folder / names.CHECKPOINTS, vault)
            if found is not None:
                require_same_run(found.config, config, folder)
            if finished_summary(folder, config.rounds.count, found) is not None:
                return
            for warning in given_up(config):
                watching.note(f"WARNING: {warning}")
            for words in against_all_others(config):
                watching.note(words)
            records, tested = public_records(config), public_digest(config)
            if found is not None:
                require_same_public(found, public_labels(config, records), tested, folder)
            public = public_part(config, records)
            model, test = public.model, public.test
            if words := cut_off_of_test(test):
                watching.note(words)
            place = Workplace(
                folder, model, test, kit.roster, watching, lambda run, number: ({}, {}), vault
            )
            start = starting_point(config, found)
            state = starting_state(config, model, found, tested, start)
            require_same_model(state.model, model.fingerprint, folder)
            presence, wait_s = GridPresence(grid), config.rounds.timeout_s
            keys = dict(kit.roster.node_keys)
            authority = RemoteAuthority(
                grid, presence, keys.pop("authority"), wait_s, watching.note
            )
            sites = RemoteSites(
                grid,
                presence,
                keys,
                config.rounds.min_sites,
                wait_s,
                watching.note,
                kit.roster.shown,
            )
            terms = make_terms(config, model, state.run)
            # Word for word, for a release: another version may write it otherwise.
            write_bytes(folder / names.TERMS, terms.config_text.encode(), mode=0o600)
            loop = RoundLoop(config, place, terms, sites, authority)
            final = loop.run(state)
            adapter_of(model).place(final.adapter)
            # Also those of earlier starts.
            answered = tuple(sorted(loop.names | known_sites(folder)))
            finish(
                folder,
                config,
                model,
                state.run,
                answered,
                began,
                kit.roster,
                started_from=state.started_from,
                public=public,
            )


def main() -> None:
    """Carry a run; the arguments are PARENT KIT FOLDER, the ticket comes on standard input."""
    parent, kit_folder, folder = sys.argv[1:]
    keep_memory_private()
    die_with_parent(int(parent))
    ticket = Ticket(**json.load(sys.stdin))
    try:
        carry(read_kit(Path(kit_folder), "coordinator"), Path(folder), ticket)
        write_outcome(Path(folder), None)
    except FedllmError as error:
        write_outcome(Path(folder), Refusal.whole(error).model_dump())
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
