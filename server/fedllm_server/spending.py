"""What a simulation's sites have spent already, in words for whoever starts a run on them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from fedllm.config import RunConfig, SitePolicy
from fedllm.errors import FedllmError
from fedllm.federation.site.charging import SiteAccount
from fedllm.identity.keys import Identity
from fedllm.identity.roster import Roster
from fedllm.privacy.accounting.words import epsilon_text
from fedllm.runs.checkpoints import RunState
from fedllm_client.simulated import SimulatedSites


def spent_before(
    source: SimulatedSites,
    sites: Sequence[str],
    policy: SitePolicy,
    roster: Roster,
    config: RunConfig,
    state: RunState | None,
) -> str:
    """Say what the ledgers hold of these sites, or that they are new; and where a run goes on.

    Parameters
    ----------
    source : SimulatedSites
        Where the ledgers are.
    sites : sequence of str
        Their names.
    policy : SitePolicy
        Theirs, with the ceilings.
    roster : Roster
        With the sites' names for people.
    config : RunConfig
        The run.
    state : RunState, optional
        Its newest checkpoint; none for a run that begins.
    """
    spent: dict[str, float] = {}
    budget = policy.budget
    for name in sites:
        files, identity = source.files(name), Identity.load(name, source.keys(name))
        # A ledger that does not hold keeps its site away; the site says so itself when it is asked.
        with suppress(FedllmError):
            if files.ledger.exists():
                spent[name] = SiteAccount(files, identity, policy).spent()
    going_on = "" if state is None else _going_on(state.round, config.rounds.count)
    most = max(spent, key=spent.__getitem__, default=None)
    if most is None or spent[most] == 0.0:
        return going_on + (
            f"the ledgers in {source.home} know of no earlier spending of these sites; what runs "
            "in other folders spent is not counted here, unless they share --ledgers"
        )
    ceiling = f" of a ceiling of {epsilon_text(budget.epsilon)}" if config.private else ""
    return going_on + (
        f"already spent by these sites, over all runs in the ledgers of {source.home}: epsilon "
        f"{epsilon_text(spent[most])}{ceiling} at delta {budget.delta:g} "
        f"(the most of {len(sites)} sites: {roster.shown(most)})"
    )


def _going_on(done: int, rounds: int) -> str:
    if done >= rounds:
        return f"all {rounds} rounds are done, what the run leaves is written; "
    return f"going on with round {done + 1} of {rounds}; "
