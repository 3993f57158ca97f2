"""The public part of a run's work: the base model and the public test set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedllm.config import RunConfig
from fedllm.data.records import Record
from fedllm.data.sources import read_records
from fedllm.randomness import RandomStream

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
    if config.data.test is None:
        return []
    section = config.data.model_copy(update={"unit": None, "site": None, "query": None})
    return read_records(config.data.test, section, config.task)


def public_part(
    config: RunConfig, records: list[Record]
) -> tuple[SharedModel, EncodedDataset | None]:
    """Load the base model, and encode the public test records, as the coordinator has them."""
    # Torch comes with these; `public_records` is called before.
    from fedllm.data.encode import encode, label_set
    from fedllm.federation.site.model_cache import process_models

    classify = config.task == "classification"
    labels = label_set(config.data, records) if classify else ()
    if config.data.test_limit is not None:
        order = RandomStream.seeded(config.seed, "test records").permutation(len(records))
        records = [records[i] for i in sorted(order[: config.data.test_limit])]
    model = process_models().get(config, labels)
    if not records:
        return model, None
    length = config.model.max_length
    return model, encode(records, config.task, model.tokenizer, length, labels)
