"""What attacks found, kept in a run folder's ``audit/`` for the report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field

from fedllm.canonical import canonical_json, read_object, sha256_hex
from fedllm.clock import utc_now
from fedllm.config import Section
from fedllm.errors import ConfigError
from fedllm.files import write_json
from fedllm.runs.names import ADAPTER, AUDIT, HEADS, METRICS, RUN_TOML, SUMMARY

Count = Annotated[int, Field(ge=0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class Kept(Section):
    """What the result of every audit says of itself.

    Attributes
    ----------
    made : str
        When it was kept; UTC, ISO 8601. Empty in older results.
    of : dict of str to str
        SHA-256 of the run folder's files that it was made of, by name; empty text where there
        was none. None in older results.
    """

    made: str = ""
    of: dict[str, str] | None = None


class CanaryAttack(Section):
    """One attack on canaries, and the lower bound that it gave.

    Attributes
    ----------
    kind : {"white-box", "black-box"}
        What the attacker saw: every sum, or the final model's losses.
    canaries, guesses, right : int
        Coins, guesses made, right guesses.
    epsilon : float
        Lower bound for the curve of a Gaussian mechanism.
    epsilon_without_assumption : float
        Lower bound for any mechanism.
    confidence : float
        Of each bound.
    largest : float, optional
        About the most that so many canaries could have shown; none in older results.
    needed : int, optional
        How many canaries could refute the claim; none without a claim, in older results, and
        where 200,000 could not.
    """

    kind: Literal["white-box", "black-box"]
    canaries: Count
    guesses: Count
    right: Count
    epsilon: Finite
    epsilon_without_assumption: Finite
    confidence: Share
    largest: Finite | None = None
    needed: Count | None = None


class CanaryResult(Kept):
    """An audit by canaries.

    Attributes
    ----------
    claimed : float, optional
        Epsilon that the run promises; none without privacy.
    recomputed : float, optional
        Epsilon of the sandbox's events by foreign accountants; none without privacy.
    delta : float
        Of both and of the bounds.
    attacks : tuple of CanaryAttack
        What was tried.
    """

    claimed: Finite | None
    recomputed: Finite | None
    delta: Finite
    attacks: tuple[CanaryAttack, ...]

    @property
    def confidence(self) -> float:
        """Probability that all bounds hold together, at least."""
        return max(0.0, 1 - sum(1 - attack.confidence for attack in self.attacks))

    @property
    def refuted(self) -> bool:
        """Whether an attack told more than the claim allows."""
        return self.claimed is not None and any(a.epsilon > self.claimed for a in self.attacks)


class MembershipAttack(Section):
    """Membership inference against one model.

    Attributes
    ----------
    name : str
        The run.
    epsilon : float, optional
        That it promises; none without privacy.
    auc : float
        Area under the ROC curve; one half is guessing.
    auc_interval : tuple of float
        95% confidence interval.
    tpr_at_0_1_percent, tpr_at_1_percent : float
        Share of the members found at that share of false alarms.
    false_positive, true_positive : tuple of float
        The ROC curve.
    """

    name: str
    epsilon: Finite | None
    auc: Share
    auc_interval: tuple[Finite, Finite]
    tpr_at_0_1_percent: Share
    tpr_at_1_percent: Share
    false_positive: tuple[Share, ...]
    true_positive: tuple[Share, ...]


class MembershipResult(Kept):
    """Membership inference against a released model and its twins.

    Attributes
    ----------
    members, others : int
        Training records and other records that were told apart.
    shadows : int
        Models that the attacker trained itself.
    models : tuple of MembershipAttack
        The released one first.
    control : MembershipAttack
        The same attack on the model before training, which knows nothing of the records: what
        it finds is how members and others differ in kind.
    """

    members: Count
    others: Count
    shadows: Count
    models: tuple[MembershipAttack, ...]
    control: MembershipAttack

    @property
    def told(self) -> bool:
        """Whether the released model told members beyond chance and beyond the control.

        On the whole, or some of them at few false alarms.
        """
        released, control = self.models[0], self.control
        return (
            released.auc_interval[0] > max(0.5, control.auc)
            or self._some_are_told(released.tpr_at_1_percent, control.tpr_at_1_percent, 0.01)
            or self._some_are_told(released.tpr_at_0_1_percent, control.tpr_at_0_1_percent, 0.001)
        )

    def _some_are_told(self, found: float, control: float, false_alarms: float) -> bool:
        """Compare shares by exact limits of 99% (Clopper and Pearson 1934), however few there are.

        The threshold was chosen on the others, so their true share of false alarms may be
        higher than what was counted.
        """
        from scipy.stats import beta

        hits, alarms = round(found * self.members), int(false_alarms * self.others + 1e-9)
        if not hits or not self.others:
            return False
        least = float(beta.ppf(0.01, hits, self.members - hits + 1))
        most = float(beta.ppf(0.99, alarms + 1, self.others - alarms))
        return least > max(most, control)


class Extracted(Section):
    """How much of the planted secrets one sandboxed model gives away.

    Attributes
    ----------
    name : str
        Of the model.
    epsilon : float, optional
        That it promises; none without privacy or before training.
    extracted : int
        Secrets that greedy completion gives word for word.
    exposure : tuple of float
        Of each secret, in bits.
    """

    name: str
    epsilon: Finite | None
    extracted: Count
    exposure: tuple[Finite, ...]


class ExtractionResult(Kept):
    """Exposure of secrets planted into a sandboxed copy of a run.

    Attributes
    ----------
    secrets, repeats : int
        Planted secrets, and how often each stood in the records of its person.
    maximum, expected : float
        Exposure of a secret that ranks first, and the mean without memorisation.
    models : tuple of Extracted
        Before training, as the run asks, and its twin without privacy.
    """

    secrets: Count
    repeats: Count
    maximum: Finite
    expected: Finite
    models: tuple[Extracted, ...]


class SiteEpsilon(Section):
    """What one account of a site has spent over all runs, recomputed.

    Attributes
    ----------
    site, unit : str
        Whose, and what one unit of privacy is.
    claimed, recomputed, colluders : float, optional
        By fedllm; by foreign accountants, as others see sums, and as all others collude. None
        is unlimited.
    delta : float
        Of all three.
    """

    site: str
    unit: str
    claimed: Finite | None
    recomputed: Finite | None
    colluders: Finite | None
    delta: Finite


class FoundProblem(Section):
    """A finding of an audit of ledgers."""

    severity: Literal["critical", "warning", "note"]
    subject: str
    text: str


class AuditedLedger(Section):
    """A ledger as an audit found it.

    Attributes
    ----------
    file : str
        Within the run's folder, or its whole path where it lies elsewhere.
    site, head : str
        Whose, and its last entry (``SEQUENCE:HASH``); empty where it could not be believed.
    """

    file: str
    site: str
    head: str


class EpsilonResult(Kept):
    """An audit of a run's ledgers; ``ledgers`` is None in older results."""

    sites: tuple[SiteEpsilon, ...]
    findings: tuple[FoundProblem, ...]
    ledgers: tuple[AuditedLedger, ...] | None = None

    @property
    def critical(self) -> int:
        """How many findings mean that a claim does not hold."""
        return sum(finding.severity == "critical" for finding in self.findings)

    @property
    def warnings(self) -> int:
        """How many findings mean that a promise is weaker than it may seem."""
        return sum(finding.severity == "warning" for finding in self.findings)


Result = TypeVar("Result", CanaryResult, MembershipResult, ExtractionResult, EpsilonResult)


# What each audit of a run folder was made of; an adapter is all files of its folder.
_MADE_OF = {
    "epsilon": (RUN_TOML, SUMMARY, METRICS, HEADS),
    "canaries": (RUN_TOML,),
    "membership": (RUN_TOML, ADAPTER),
    "extraction": (RUN_TOML,),
}


def made_of(run_folder: Path, name: str) -> dict[str, str]:
    """Return the SHA-256 of what an audit of a run folder is made of now; empty where missing."""
    return {file: _digest(run_folder / file) for file in _MADE_OF[name]}


def _digest(path: Path) -> str:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    # Names too: of a folder, a file more or less is another folder.
    parts = [[file.name, sha256_hex(file.read_bytes())] for file in files if file.is_file()]
    return sha256_hex(canonical_json({"files": parts})) if parts else ""


def save(run_folder: Path, name: str, result: Kept) -> Path:
    """Write a result to ``audit/NAME.json`` of a run folder, with its date and what it is of.

    Raises
    ------
    FedllmError
        If the file cannot be written.
    """
    path = run_folder / AUDIT / f"{name}.json"
    result = result.model_copy(update={"made": utc_now(), "of": made_of(run_folder, name)})
    # What an older result does not say is not written as if it said nothing.
    write_json(path, result.model_dump(mode="json", exclude_unset=True))
    return path


def load(run_folder: Path, name: str, kind: type[Result]) -> Result | None:
    """Read a result; none when that audit was not made.

    Raises
    ------
    ConfigError
        If the file is there and damaged.
    """
    path = run_folder / AUDIT / f"{name}.json"
    if not path.exists():
        return None
    try:
        return kind.model_validate(read_object(path.read_bytes()))
    except (OSError, ValueError):
        raise ConfigError(
            f"{path} is damaged: it is not the result of `fedllm audit {name}`",
            "repeat that audit, or remove the file to leave it out of the report",
        ) from None
