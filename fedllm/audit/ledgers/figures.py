"""What an audit of ledgers says: figures by data set and run, and what they rest on."""

from __future__ import annotations

from dataclasses import dataclass

from fedllm.audit.findings import Finding
from fedllm.audit.ledgers.recompute import Recomputed
from fedllm.privacy.ledger.budget import View
from fedllm.privacy.ledger.fingerprints import Unit

# Whose eyes a figure is for: one set of words for the table and for what it rests on.
SUMS = "others see sums"
COLLUDERS = "all others collude"

ASSUMPTIONS = (
    "Neighbouring data sets: one unit's content (a record, or all records of a person, as the "
    "account says) is replaced by an empty one. The number of units and the sampling rate "
    "are taken as public.",
    "Sampling: each unit was in a step's batch independently, with the recorded probability "
    "(Poisson sampling). `fedllm audit selftest` tests that the installed code does this.",
    "Noise: Gaussian, or integers worth as much, with the recorded standard deviation in units "
    "of the most that one unit can change (the clipping norm; twice that where whole sites are "
    "the unit), from a generator that nobody can predict. The self-test tests this too.",
    f"'{SUMS}', also in each run's row: coordinator, key authority and the other sites see opened "
    "sums and the model. With distributed noise this relies on at most `privacy.colluders` sites "
    "revealing their share of the noise.",
    f"'{COLLUDERS}': everyone else puts together what they have against this site.",
    "Rounds that were charged count in full, whether they finished or not, for every file, query "
    "and task of the site. Accounts that the site declares do not count each other's rounds: that "
    "they share no person is the site's word.",
    "A ledger says what the site recorded. That nothing was left out follows from the order "
    "'charge, then train' in the code, and from heads (anchors) that other parties kept.",
)


@dataclass(frozen=True, slots=True)
class EventGroup:
    """Equal steps, counted.

    Attributes
    ----------
    mechanism : str
        "Poisson-sampled Gaussian" (or "discrete Gaussian"), "Gaussian" or "none".
    sampling_rate, noise_multiplier : float, optional
        None for steps without privacy.
    steps : int
        How many.
    """

    mechanism: str
    sampling_rate: float | None
    noise_multiplier: float | None
    steps: int


@dataclass(frozen=True, slots=True)
class RunAudit:
    """One run's cost to one account.

    Attributes
    ----------
    run, name : str
        Its identifier, and what people call it; empty where no charge says it.
    committed, reserved_only : int
        Rounds that finished, and rounds that were charged and did not.
    recomputed, colluders : Recomputed
        From the events alone, as those see it who see sums, and as all others colluding.
    claimed : float
        What fedllm's own accountant says of what ``recomputed`` saw.
    colluders_claimed : float
        The same of what ``colluders`` saw.
    reported : float, optional
        What the run's ``summary.json`` says of this site; none where it says nothing.
    groups : tuple of EventGroup
        What happened.
    delta : float
        That the run asked for, and at which everything here is computed.
    unit : {"record", "person"}
        What its last charge protected.
    last_round : int
        The largest number of a round that was charged.
    """

    run: str
    committed: int
    reserved_only: int
    recomputed: Recomputed
    colluders: Recomputed
    claimed: float
    colluders_claimed: float
    reported: float | None
    groups: tuple[EventGroup, ...]
    delta: float
    unit: Unit
    last_round: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class Limit:
    """A site's ceiling at its last charge under it, and what had been spent by then.

    Attributes
    ----------
    who : str
        What was limited; see `fedllm.privacy.ledger.rules.Promise`.
    view : {"sums", "colluders"}
        In whose eyes.
    ceiling : float
        Largest epsilon that the site allowed; never infinite.
    spent : float
        Recomputed; by fedllm where the foreign accountants have nothing but a loose bound.
    """

    who: str
    view: View
    ceiling: float
    spent: float


@dataclass(frozen=True, slots=True)
class AccountAudit:
    """One account over all runs.

    Attributes
    ----------
    account, unit
        As in `AccountReport`.
    delta : float
        At which everything is computed: the ceiling's.
    ceiling : float, optional
        Largest epsilon that the site allowed at its last charge; infinite without a limit, none
        where nothing was charged.
    limits : tuple of Limit
        What every charge had to keep to, by the rule of its time.
    sums, colluders : Recomputed
        Over all runs, as two kinds of observers see it.
    claimed : float
        fedllm's own accountant on what ``sums`` saw.
    runs : tuple of RunAudit
        In the order of their first charge.
    by_dataset : int
        Charges of before, by data set, which count for the account.
    """

    account: str
    unit: Unit
    delta: float
    ceiling: float | None
    limits: tuple[Limit, ...]
    sums: Recomputed
    colluders: Recomputed
    claimed: float
    runs: tuple[RunAudit, ...]
    by_dataset: int


@dataclass(frozen=True, slots=True)
class LedgerAudit:
    """One ledger; without a site when it could not be believed.

    ``title`` is the site's name for people, from a roster beside the ledger that was not checked.
    """

    path: str
    site: str
    head: str
    accounts: tuple[AccountAudit, ...]
    title: str = ""


@dataclass(frozen=True, slots=True)
class EpsilonAudit:
    """All ledgers, and what is wrong or worth knowing."""

    ledgers: tuple[LedgerAudit, ...]
    findings: tuple[Finding, ...]

    @property
    def critical(self) -> bool:
        """Whether something does not hold."""
        return any(finding.severity == "critical" for finding in self.findings)
