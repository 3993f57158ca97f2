"""The public part of a run's work: the base model and the public test set."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedllm.config import RunConfig
from fedllm.data.readers import data_files
from fedllm.data.records import Record
from fedllm.randomness import RandomStream
from fedllm.tasks import task_of

if TYPE_CHECKING:
    from fedllm.data.encode import EncodedDataset
    from fedllm.models.shared import SharedModel


def public_records(config: RunConfig) -> list[Record]:
    """Read the public test records; none without a file of them.

    Raises
    ------
    DataError
        If the file is missing or not as the configuration says.
    """
    return task_of(config).read_public(config.data)


def public_labels(config: RunConfig, records: list[Record]) -> tuple[str, ...]:
    """Return the public set of labels in the order of the model's head; empty without a head."""
    return task_of(config).labels(config.data, records)


def public_digest(config: RunConfig) -> str:
    """Return the SHA-256 of what the public test files hold, whatever they are called.

    Empty without one.
    """
    if config.data.test is None:
        return ""
    found = hashlib.sha256()
    for path in data_files(config.data.test):
        with path.open("rb") as stream:
            found.update(hashlib.file_digest(stream, "sha256").digest())
    return found.hexdigest()


@dataclass(frozen=True)
class PublicPart:
    """What the coordinator has of its own.

    Attributes
    ----------
    model : SharedModel
        The base model with an untrained adapter.
    test : EncodedDataset, optional
        The public test records.
    parts : mapping of str to sequence of str
        By "label" or "group", where there are such: of which each test record is.
    """

    model: SharedModel
    test: EncodedDataset | None
    parts: Mapping[str, Sequence[str]]


def public_part(config: RunConfig, records: list[Record]) -> PublicPart:
    """Load the base model, and encode the public test records, as the coordinator has them."""
    # Torch comes with these; `public_records` is called before.
    from fedllm.tasks.cache import process_models

    task = task_of(config)
    labels = public_labels(config, records)
    if config.data.test_limit is not None:
        order = RandomStream.seeded(config.seed, "test records").permutation(len(records))
        records = [records[i] for i in sorted(order[: config.data.test_limit])]
    model = process_models().get(config, labels)
    if not records:
        return PublicPart(model, None, {})
    parts = {"label": task.classes(records)}
    if config.data.group is not None:
        parts["group"] = tuple(str(record.site) for record in records)
    test = task.encode(records, model.tokenizer, config.model.max_length, labels)
    return PublicPart(model, test, {kind: part for kind, part in parts.items() if part})


def cut_off_of_test(encoded: EncodedDataset | None) -> str:
    """Say how much of the public test records is cut off; empty where nothing is."""
    return "" if encoded is None or not encoded.cut_off else f"data.test: {encoded.cut_off}"
