"""Which kind of configuration a file is, by what only that kind has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of TOML file that a command reads.

    Attributes
    ----------
    model : str
        Name of the class that it is read into.
    words : str
        What people call it.
    remedy : str
        The command that reads it.
    marks : frozenset of str
        Keys, with their section, that no other kind has.
    """

    model: str
    words: str
    remedy: str
    marks: frozenset[str]


KINDS = (
    Kind(
        "RunConfig",
        "the configuration of a federated run",
        "use it with `fedllm simulate`, or in a deployment with `fedllm run`",
        frozenset({"task", "lora", "rounds", "privacy", "encryption", "evaluation", "engine"}),
    ),
    Kind(
        "PretrainConfig",
        "a pretraining configuration",
        "use it with `fedllm pretrain`, or as model.path of a run",
        frozenset(
            {
                "objective",
                "tokenizer",
                "report",
                "model.architecture",
                "model.size",
                "training.tokens",
                "training.sequence_length",
                "training.batch_rows",
            }
        ),
    ),
    Kind(
        "AlignConfig",
        "the configuration of an alignment",
        "use it with `fedllm align ppo` or `fedllm align grpo`",
        frozenset({"reward", "prompts", "answers", "kl", "guards", "value", "selection"}),
    ),
    Kind(
        "SitePolicy",
        "a site's policy",
        "use it with --policy: `fedllm client check`, `fedllm client start`, `fedllm simulate`",
        frozenset({"budget", "allow"}),
    ),
    Kind(
        "FederationConfig",
        "a federation's file",
        "use it with `fedllm provision FEDERATION.toml --out DIR`",
        frozenset({"coordinator", "authority", "sites", "titles", "min_cohort", "validity_days"}),
    ),
)


def other_kind(values: Mapping[str, Any], model: str) -> Kind | None:
    """Return what a file is instead of what it was read as; None if nothing says so.

    Parameters
    ----------
    values : mapping
        The file's content.
    model : str
        Name of the class that it was read into, in vain.
    """
    there = set(values) | {
        f"{section}.{key}"
        for section, table in values.items()
        if isinstance(table, Mapping)
        for key in table
    }
    if any(kind.model == model and kind.marks & there for kind in KINDS):
        # A key of another kind in the right file is a slip.
        return None
    others = [kind for kind in KINDS if kind.model != model]
    most = max(others, key=lambda kind: len(kind.marks & there))
    return most if most.marks & there else None
