"""Who takes part in a run, and who of them in a round."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fedllm.config import RunConfig
from fedllm.errors import FedllmError
from fedllm.federation.coordinator.answers import (
    called,
    joined_member,
    too_few,
    who_and_why,
)
from fedllm.federation.coordinator.parties import Sites
from fedllm.federation.protocol.cohorts import CohortMember
from fedllm.federation.protocol.messages import Join, JoinHeader
from fedllm.federation.protocol.statements import check_member, require
from fedllm.federation.protocol.terms import Terms
from fedllm.identity.roster import Roster
from fedllm.randomness import RandomStream


def gather_cohort(
    sites: Sites, terms: Terms, number: int, roster: Roster, say: Callable[[str], None]
) -> tuple[CohortMember, ...]:
    """Ask all connected sites whether they take part from round ``number`` on.

    Returns
    -------
    tuple of CohortMember
        Those that do, by name.

    Raises
    ------
    FedllmError
        If fewer than ``rounds.min_sites`` take part: the refusal that most sites gave. If more
        take part than a sum holds.
    """
    header = JoinHeader(
        run=terms.run,
        round=number,
        config=terms.config_text,
        labels=terms.labels,
        model=terms.model,
        adapter_length=terms.adapter_length,
    )
    members: dict[str, CohortMember] = {}
    refusals: list[tuple[str, FedllmError]] = []
    for node, answer in sites.join(Join(header)):
        who = called(answer, node, roster)
        try:
            member = joined_member(answer, who)
            check_member(member, terms.run, roster)
            require(member.name not in members, f"two nodes say that they are '{member.name}'")
        except FedllmError as error:
            refusals.append((who, error))
            continue
        members[member.name] = member
        sites.admit(node, member.name)
    for names, why in who_and_why(((who, str(error)) for who, error in refusals), roster):
        say(f"not taking part: {names}: {why}")
    if len(members) < terms.config.rounds.min_sites:
        errors = [error for _, error in refusals]
        raise too_few(len(members), terms.config.rounds.min_sites, errors)
    terms.config.require_room(len(members))
    return tuple(members[name] for name in sorted(members))


def choose_cohort(
    config: RunConfig, members: Sequence[CohortMember], number: int, attempt: int
) -> tuple[CohortMember, ...]:
    """Return the sites of one attempt of a round: all of them, or a part at random.

    A part saves time and traffic and nothing else: whoever knows the cohort gains nothing from
    the draw, and the coordinator does, so no epsilon is smaller for it. A site is charged for
    the rounds that it is in.

    Parameters
    ----------
    members : sequence of CohortMember
        Those that take part in the run, by name.
    number, attempt : int
        Of the round; another attempt draws again.

    Returns
    -------
    tuple of CohortMember
        By name; ``rounds.sites`` of them where that is set and smaller.
    """
    count = config.rounds.sites
    if count is None or count >= len(members):
        return tuple(members)
    order = RandomStream.seeded(config.seed, "cohort", number, attempt).permutation(len(members))
    return tuple(members[i] for i in sorted(order[:count].tolist()))
