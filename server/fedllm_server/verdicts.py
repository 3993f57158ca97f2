"""What the coordinator thinks of a round: its sum's norm, the loss on its public file, its adapter.

They look at what is public or noised already, so they cost no privacy; and what was charged for
a round that is rejected stays charged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Literal

import numpy as np

from fedllm.config import RunConfig
from fedllm.errors import TrainingError
from fedllm.federation.coordinator.rounds import RoundOutcome
from fedllm.federation.protocol.cohorts import CohortMember
from fedllm.federation.protocol.terms import Terms
from fedllm.federation.site.orders import LARGEST_VALUE
from fedllm.mechanisms import Mechanism
from fedllm.models.manifest import AdapterManifest
from fedllm.runs.checkpoints import Good, RunState
from fedllm.runs.metrics import Figures, RoundReport

# So many rounds are not rejected in a row by chance; each costs the sites privacy.
MOST_REJECTED = 3
_REMEDIES = {
    "norm": "find out which site does not run this software as it is, and revoke it",
    "test": "find out which site trains on something else, or lower the learning rates; where "
    "losses that rise so much are nothing unusual, raise rounds.rollback_rise in a new run",
}


@dataclass(frozen=True)
class NormVerdict:
    """What the norms of one opened sum say.

    Attributes
    ----------
    ratio : float
        The largest norm over its limit, of the whole sum and of each tensor.
    where : str
        Words for which it is.
    """

    ratio: float
    where: str

    @property
    def reason(self) -> str:
        """Why the sum is no honest cohort's; empty where it may be one."""
        # Also where it is no number.
        if self.ratio <= 1:
            return ""
        return (
            f"the norm of {self.where} is {self.ratio:.3g} times the most that sites of this "
            "software send together"
        )


def norm_verdict(
    mechanism: Mechanism,
    terms: Terms,
    members: Sequence[CohortMember],
    outcome: RoundOutcome,
    state: RunState,
    up: AdapterManifest,
) -> NormVerdict | None:
    """Compare the norms of an opened sum with what an honest cohort's are at most.

    An honest cohort's are above that once in a million rounds, whatever its records are; see
    `fedllm.mechanisms.sums`.

    Parameters
    ----------
    members : sequence of CohortMember
        Those that take part in the run.
    state : RunState
        Before the round is finished, with its attempts.
    up : AdapterManifest
        Layout of what the sites sent.

    Returns
    -------
    NormVerdict or None
        None where nothing is known of an honest cohort's norms but the bounds of its values.
    """
    sizes = [member.units for member in members if member.name in outcome.survivors]
    law = mechanism.sum_law(sizes, state.round + 1, state.noise, up.length)
    if law is None:
        return None
    told = terms.bounds_of(state.round + 1)
    lengths = [length for length, _ in told]
    bounds = np.repeat([bound for _, bound in told], lengths)
    ratios = law.ratios(outcome.mean * len(outcome.survivors) / bounds, lengths)
    worst = int(np.argmax(ratios))
    where = f"the tensor {up.segments[worst - 1].name}" if worst else "the sum"
    return NormVerdict(float(ratios[worst]), where)


def judge_test(state: RunState, metrics: Figures, rise: float) -> tuple[RunState, str]:
    """Take note of an evaluation on the public test file: keep the round's adapter, or go back.

    Parameters
    ----------
    state : RunState
        After the round.
    metrics : dict
        Of its adapter.
    rise : float
        ``rounds.rollback_rise``.

    Returns
    -------
    state : RunState
        With the adapter and the optimiser's state to go on from.
    reason : str
        Why it went back; empty where it did not.
    """
    loss, good = metrics.get("loss"), state.good
    # What is no number is written as None.
    value = float("nan") if loss is None else loss
    if rise and good is not None and not value <= good.loss + rise:
        found = f"{value:.4g}" if isfinite(value) else "no number"
        reason = (
            f"the loss on the public test file is {found}, and the best so far was "
            f"{good.loss:.4g}; back to round {good.round}"
        )
        return replace(state, adapter=good.adapter, optimizer=good.optimizer), reason
    if not isfinite(value):
        return state, ""
    best = value if good is None else min(value, good.loss)
    return replace(state, good=Good(state.round, best, state.adapter, state.optimizer)), ""


def rising(reports: Sequence[RoundReport]) -> str:
    """Say that training makes the model worse, at the first evaluation that shows it.

    Parameters
    ----------
    reports : sequence of RoundReport
        Of all rounds so far; the one of round 0 is of the adapter that the run began with.

    Returns
    -------
    str
        Empty where the last of them was not evaluated, or shows nothing new.
    """
    losses = [(r.round, r.metrics.get("loss")) for r in reports if r.metrics is not None]
    known = [(number, loss) for number, loss in losses if loss is not None]
    if not known or known[-1][0] != reports[-1].round:
        return ""
    now, before = _worse(known), _worse(known[:-1])
    if not now or before:
        return ""
    return (
        f"the loss on the public test file {now}: lower rounds.learning_rate or "
        "training.learning_rate, or, with privacy, have larger batches, fewer rounds or fewer "
        "trained values (lora.rank); `fedllm privacy plan RUN.toml` shows the noise"
    )


def _worse(losses: Sequence[tuple[int, float]]) -> str:
    if len(losses) < 2:
        return ""
    (start, first), (_, last) = losses[0], losses[-1]
    if start == 0 and last > first:
        return f"is {last:.4g}, above the {first:.4g} before training"
    *_, one, two, three = (None, None, *(loss for _, loss in losses))
    if one is not None and two is not None and three is not None and one < two < three:
        return f"rises: {one:.4g}, {two:.4g}, {three:.4g} in the last three evaluations"
    return ""


def require_progress(reports: Sequence[RoundReport]) -> None:
    """Stop a run of which several rounds in a row came to nothing.

    Looks at the moment when it comes to that, so that a run may be resumed once its sites are
    in order, and stops again after as many.

    Parameters
    ----------
    reports : sequence of RoundReport
        Of all rounds so far, the last one just finished.

    Raises
    ------
    TrainingError
        Says why they were rejected.
    """
    tests = [report for report in reports if report.metrics is not None]
    reason: Literal["norm", "test"]
    for reason, judged in (("norm", reports), ("test", tests)):
        count = next(
            (i for i, report in enumerate(reversed(judged)) if reason not in report.rejected),
            len(judged),
        )
        if count and count % MOST_REJECTED == 0 and judged[-1] is reports[-1]:
            why = judged[-1].rejected[reason]
            raise TrainingError(
                f"{count} rounds in a row were rejected, the last because {why}; no further "
                "round is charged",
                f"{_REMEDIES[reason]}; then go on with --resume",
            )


def acceptable(config: RunConfig, state: RunState) -> bool:
    """Tell whether sites accept the state's adapter; all do in a run without privacy."""
    return not config.private or bool(np.abs(state.adapter).max(initial=0.0) <= LARGEST_VALUE)


def require_acceptable(config: RunConfig, state: RunState) -> None:
    """Refuse an adapter that every site of a private run would refuse, before one is asked.

    Raises
    ------
    TrainingError
        If a value is beyond what a site accepts.
    """
    if acceptable(config, state):
        return
    raise TrainingError(
        f"after round {state.round} the adapter has values beyond {LARGEST_VALUE:g}, which no site "
        "accepts: the noise is too large for this learning rate; no further round is charged",
        "start a new run with a larger privacy.epsilon, or a smaller rounds.learning_rate or "
        "training.learning_rate (and head_learning_rate); `fedllm privacy plan RUN.toml` shows the "
        "noise",
    )
