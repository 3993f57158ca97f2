"""Checks of preferences: one clipped gradient a ranking event, against the run's own beginning.

The losses are computed here again, one answer at a time by the model's own forward pass, and what
they are compared with by a second model that nobody has trained.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from fedllm.audit.selftest.material import (
    LEARNING_RATE,
    TASKS,
    Kind,
    Material,
    Vector,
    clipped,
    dataset_of,
)
from fedllm.config import DataSection, RunConfig
from fedllm.config.task import learns_preferences
from fedllm.data.encode import EncodedDataset
from fedllm.data.records import Record
from fedllm.mechanisms import mechanism_of
from fedllm.models.shared import SharedModel
from fedllm.randomness import RandomStream
from fedllm.tasks import task_of
from fedllm.training import local

# As `fedllm.audit.selftest.step`.
_TOLERANCE = 1e-3
_TASK = next(task for task in TASKS if learns_preferences(task))
_MODELS: tuple[tuple[Kind, str], ...] = (("llama", "dpo"), ("bert", "reward"))
_EVENTS, _ROWS_OF_EACH, _ANSWERS = 6, 3, 4
# As the labels of tokens have it: see `fedllm.models.sequences`.
_KINDS, _ANSWER = 4, 1


def rankings_count_once(material: Material) -> str | None:
    """All that is said of the answers to one prompt is one unit, clipped once."""
    path = material.new_folder() / "rankings.jsonl"
    rows = _rows()
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for kind, objective in _MODELS:
        config = material.config(kind, _TASK, preference={"objective": objective})
        data = DataSection(train=str(path))
        records = task_of(config).read(str(path), data)
        if len(records) != _EVENTS:
            return (
                f"{len(rows)} rows with {_EVENTS} prompts make {len(records)} units: pairs of one "
                "ranking are charged apart, or rankings together"
            )
        if problem := _clipped_once(material, config, records):
            return problem
    return None


def _rows() -> list[dict[str, str]]:
    """Return rows that name a few answers each; those of one prompt do not stand together."""
    stream = RandomStream.seeded(23, "selftest rankings")

    def words(count: int) -> str:
        return " ".join(f"w{number}" for number in stream.below(60, count))

    prompts = [words(4) for _ in range(_EVENTS)]
    answers = [[words(3) for _ in range(_ANSWERS)] for _ in prompts]
    return [
        {"prompt": prompt, "chosen": own[turn], "rejected": own[turn + 1]}
        for turn in range(_ROWS_OF_EACH)
        for prompt, own in zip(prompts, answers, strict=True)
    ]


def _clipped_once(material: Material, config: RunConfig, records: Sequence[Record]) -> str | None:
    """Compare a step with gradients of losses that are computed here."""
    model, untrained = material.model(config), task_of(config).load_model(config)
    dataset = dataset_of(records, config, model)
    gradients = np.stack(
        [_gradient(model, untrained, dataset, index) for index in range(len(dataset))]
    )
    lengths = np.linalg.norm(gradients, axis=1)
    settings = mechanism_of(config).settings(dataset.number_of_units, 0.0)
    # All as they are, and all cut: two that were cut apart would be longer than one.
    for norm in (2.0 * float(lengths.max()), 0.01 * float(lengths.min())):
        one = replace(settings, steps=1, sampling_rate=1.0, clipping_norm=norm)
        found = local.train_locally(
            model, dataset, one, RandomStream.secure(), RandomStream.secure()
        ).update.astype(np.float64)
        found = -found * one.expected_batch_size / LEARNING_RATE
        right = clipped(gradients, norm).sum(axis=0)
        gap = float(np.linalg.norm(found - right) / np.linalg.norm(right))
        if gap > _TOLERANCE:
            what = "a ranking's" if norm > lengths.max() else "a ranking's clipped"
            return (
                f"{what} gradient is off by {gap:.1%} ({config.preference.objective}): it is not "
                "that of the mean over its pairs, compared with where the run began, cut once"
            )
    return None


def _gradient(
    model: SharedModel, untrained: SharedModel, dataset: EncodedDataset, index: int
) -> Vector:
    """Return the gradient (P,) of one record's loss."""
    part = slice(*dataset.offsets[index : index + 2])
    ids, tags = dataset.tokens[part], np.asarray(dataset.tags)[part]
    scores = []
    for number in range(int(tags.max()) // _KINDS + 1):
        mine = tags // _KINDS == number
        given = torch.from_numpy(ids[mine].astype(np.int64))[None]
        answer = torch.from_numpy(tags[mine] % _KINDS == _ANSWER)
        scores.append(_score(model, untrained, given, answer))
    pairs = (dataset.pairs or ())[index].tolist()
    losses = [softplus(scores[worse] - scores[better]) for better, worse in pairs]
    parts = torch.autograd.grad(torch.stack(losses).mean(), model.trained)
    return torch.cat([gradient.reshape(-1) for gradient in parts]).double().numpy()


def _score(model: SharedModel, untrained: SharedModel, ids: Tensor, answer: Tensor) -> Tensor:
    learned = model.preference
    if learned is None:
        raise RuntimeError("the model learns no preferences")
    if learned.refers:
        with torch.no_grad():
            before = _likelihood(untrained, ids, answer)
        return learned.beta * (_likelihood(model, ids, answer) - before)
    network: Any = model.module
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return network.head(network.features(batch))[0, 0]  # type: ignore[no-any-return]


def _likelihood(model: SharedModel, ids: Tensor, answer: Tensor) -> Tensor:
    logits = model.module.backbone(ids, attention_mask=torch.ones_like(ids)).logits[0].float()
    places = torch.nonzero(answer)[:, 0]
    found: Tensor = logits.log_softmax(-1)[places - 1, ids[0, places]].sum()
    return found
