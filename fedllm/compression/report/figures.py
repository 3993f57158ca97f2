"""What was found of each model, as the report and the files that it resumes from say it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedllm.audit.attacks.results import MembershipResult
from fedllm.config import Section

LABEL = "fedllm.compression_report.v2"
Count = Annotated[int, Field(ge=0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Latency(Section):
    """How long an answer took.

    Attributes
    ----------
    texts : int
        That were answered at once.
    ms : float
        Median of several times, in milliseconds.
    original_ms : float
        The same of the original, which took its turns with this model.
    """

    texts: Count
    ms: Finite
    original_ms: Finite

    @property
    def times_faster(self) -> float:
        """How often the model answers while the original does once."""
        return self.original_ms / self.ms


class Memory(Section):
    """Resident memory of a process that loads a model and answers, in bytes.

    Attributes
    ----------
    peak_bytes : int
        The most that it held, also while it loaded.
    held_bytes : int
        When it had answered.
    libraries_bytes : int
        Before a model was loaded.
    """

    peak_bytes: Count
    held_bytes: Count
    libraries_bytes: Count


class Difference(Section):
    """By how much a figure is above the original's, with a 95% interval over the records."""

    value: Finite
    low: Finite
    high: Finite


class Figures(Section):
    """What was found of one model.

    Attributes
    ----------
    form : str
        The format in which it was written, or how it was made smaller.
    packed : bool
        Whether its folder is packed; all but ``disk_bytes`` is of what it unpacks to.
    disk_bytes : int
        All files of its folder.
    tensor_bytes : int
        Its tensors in memory.
    weights, weights_not_zero : int
        Numbers that are multiplied or looked up, each once however many parts share it. None
        where they are stored in a form that is not known here.
    operations : int
        Of the products of one answer, two for each multiplication.
    latencies : tuple of Latency
        Of one text, and of several at once.
    memory : Memory, optional
        None where the system does not tell it.
    quality : dict of str to float
        The task's measures on all records.
    differences : dict of str to Difference
        Of these from the original's; empty for the original.
    same_answers : float
        Share of the texts that get the original's answer; of a model that writes, of the tokens
        at which it would go on as the original does.
    """

    form: str
    packed: bool
    disk_bytes: Count
    tensor_bytes: Count
    weights: Count | None
    weights_not_zero: Count | None
    operations: Count
    latencies: tuple[Latency, ...]
    memory: Memory | None
    quality: dict[str, Finite]
    differences: dict[str, Difference]
    same_answers: Annotated[float, Field(ge=0, le=1)]


class Compared(Section):
    """One line of the report."""

    name: str
    digest: str
    figures: Figures


class Report(Section):
    """The whole report.

    Attributes
    ----------
    label : str
        Of the format.
    made : str
        UTC, ISO 8601.
    task : str
        What the models are for.
    records : int
        On which quality was measured.
    setting : dict
        What figures depend on beside a model: digests of records and original, machine, threads,
        versions.
    new_tokens : int
        That a model writes in one answer; 0 where it labels.
    models : tuple of Compared
        The original first.
    membership : MembershipResult, optional
        Where the attack was asked for: models in the same order.
    """

    label: str = LABEL
    made: str
    task: str
    records: Count
    setting: dict[str, str | int]
    new_tokens: Count
    models: tuple[Compared, ...]
    membership: MembershipResult | None = None

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of what says how good a model is; the most telling first."""
        return tuple(self.models[0].figures.quality)
