"""What the self-test works on: a small random Transformer, made-up records, reference loops.

The reference loops take one record at a time and know nothing of hooks, microbatches, packing
or encryption, so that an error there cannot be in both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from fedllm.adapters import adapter_of
from fedllm.config import RunConfig, Task, parse
from fedllm.config.task import trains_a_head
from fedllm.data.encode import EncodedDataset
from fedllm.data.records import Record
from fedllm.mechanisms import LocalSettings
from fedllm.models.explained import explain_inputs
from fedllm.models.shared import SharedModel
from fedllm.randomness import RandomStream
from fedllm.tasks import LearningTask, task_for_base, task_of
from fedllm.tasks.cache import ModelCache
from fedllm.training.objectives import record_losses

Vector = NDArray[np.float64]
Kind = Literal["bert", "llama"]
# Names the person of a record by its number, or none.
Unit = Callable[[int], str | None]

LABELS = ("red", "green", "blue")
# The smallest sum that may be opened; so many shares make up the noise.
SHARES = 2
SITES = ("site-a", "site-b", "site-c")
RECORDS, BATCH, STEPS, ROUNDS = 24, 8, 4, 4
# So small that gradients are the same in all steps, and updates add up without remainder.
LEARNING_RATE = 1e-6
# Tells almost everything: the self-test reads the sites' batches out of the opened sums.
EPSILON = 1e6
TASKS: tuple[Task, ...] = get_args(Task)
_WORDS = tuple(f"w{i}" for i in range(60))


class Material:
    """A folder with base models, and everything that is computed from them once.

    Parameters
    ----------
    folder : Path
        Empty; base models, keys and ledgers are written here.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.models = ModelCache()
        self._checkpoints: dict[str, Path] = {}
        self._folders = 0

    def new_folder(self) -> Path:
        """Return a folder that nobody has used."""
        self._folders += 1
        path = self.folder / f"part-{self._folders}"
        path.mkdir()
        return path

    def config(
        self, kind: Kind = "bert", task: Task | None = None, **sections: dict[str, Any]
    ) -> RunConfig:
        """Return a small run's configuration, ``sections`` laid over it.

        The task is one that fits the base model where none is given.
        """
        values: dict[str, Any] = {
            "name": "selftest",
            "task": task or task_for_base(causal=kind == "llama").name,
            "model": {
                "path": str(self._checkpoint(kind)),
                "max_length": 16,
                "feature_scale": 2.0,
                "feature_center": "zero",
                "head_start": "zero",
            },
            "lora": {"rank": 8},
            "data": {"train": "made up", "sites": len(SITES)},
            "rounds": {
                "count": ROUNDS,
                "min_sites": SHARES,
                "optimizer": "average",
                "learning_rate": 1.0,
            },
            "training": {
                "local_steps": STEPS,
                "batch_size": BATCH,
                "optimizer": "sgd",
                "learning_rate": LEARNING_RATE,
            },
            "privacy": {"epsilon": EPSILON, "noise": "local", "clipping_norm": 1.0},
            "engine": {"threads": 1},
        }
        if trains_a_head(values["task"]):
            values["data"]["labels"] = list(LABELS)
        for name, section in sections.items():
            values[name] = {**values.get(name, {}), **section}
        return parse(RunConfig, values, "the self-test's run")

    def labels(self, config: RunConfig) -> tuple[str, ...]:
        """Return the public labels of a run's task."""
        return task_of(config).labels(config.data, ())

    def model(self, config: RunConfig) -> SharedModel:
        """Load a base model with an adapter that is not at its start."""
        model = task_of(config).load_model(config, self.labels(config))
        adapter_of(model).place(start_of(model))
        return model

    @cached_property
    def classifier(self) -> Reference:
        """Records of one site, each a unit of its own."""
        return self._reference("bert", by_itself)

    @cached_property
    def persons(self) -> Reference:
        """Records of persons with up to four records each."""
        return self._reference("bert", some_persons)

    @cached_property
    def causal(self) -> Reference:
        """The same for a language model."""
        return self._reference("llama", by_itself)

    @cached_property
    def references(self) -> tuple[Reference, ...]:
        """Records and persons for every task, on every kind of base model that can do it."""
        others = [
            self._reference(kind, unit, task)
            for kind, task in MODELS
            for unit in (by_itself, some_persons)
            if (kind, unit, task) not in _NAMED
        ]
        return (self.classifier, self.persons, self.causal, *others)

    def _reference(self, kind: Kind, unit: Unit, task: Task | None = None) -> Reference:
        config = self.config(kind, task)
        model = self.model(config)
        records = made_up(RECORDS, "site-a", unit, task_of(config))
        return Reference(config, model, dataset_of(records, config, model))

    def _checkpoint(self, kind: Kind) -> Path:
        if kind not in self._checkpoints:
            self._checkpoints[kind] = save_random_transformer(self.folder / kind, kind)
        return self._checkpoints[kind]


def by_itself(index: int) -> None:
    """Say that a record names no person."""


def some_persons(index: int) -> str:
    """Name one of nine persons, who have up to four records each."""
    return f"person {min(index // 2, index % 9)}"


# The task of records that a check has no wish about.
PLAIN: Task = task_for_base(causal=False).name
# Those that have a name of their own in `Material`.
_NAMED = {
    ("bert", by_itself, PLAIN),
    ("bert", some_persons, PLAIN),
    ("llama", by_itself, task_for_base(causal=True).name),
}


def _bases(task: Task) -> tuple[Kind, ...]:
    return ("bert", "llama") if trains_a_head(task) else ("llama",)


# Every task on every kind of base model that can do it.
MODELS: tuple[tuple[Kind, Task], ...] = tuple(
    (kind, task) for task in TASKS for kind in _bases(task)
)


@dataclass(frozen=True)
class Reference:
    """A model and one site's records, with the gradients that the reference loop found."""

    config: RunConfig
    model: SharedModel
    dataset: EncodedDataset

    @cached_property
    def gradients(self) -> Vector:
        """(N, P): each record's gradient."""
        return gradients_of(self.model, self.dataset)

    @cached_property
    def unit_gradients(self) -> Vector:
        """(U, P): each unit's records added up."""
        total = np.zeros((self.dataset.number_of_units, self.gradients.shape[1]))
        np.add.at(total, self.dataset.units, self.gradients)
        return total

    @cached_property
    def clipping_norm(self) -> float:
        """A norm that some units exceed and others do not, and none is near.

        The middle of the widest gap between the lengths in the middle half: at a length itself,
        rounding would decide whether that unit is within.
        """
        lengths = np.sort(np.linalg.norm(self.unit_gradients, axis=1))
        inner = lengths[len(lengths) // 4 : -(len(lengths) // 4)]
        widest = int(np.argmax(inner[1:] / inner[:-1]))
        return float(np.sqrt(inner[widest] * inner[widest + 1]))


def made_up(
    count: int,
    site: str,
    unit: Unit,
    task: LearningTask = task_for_base(causal=False),  # noqa: B008
) -> list[Record]:
    """Make records of random words; the same for the same site."""
    stream = RandomStream.seeded(11, "selftest", site)

    def words(length: int) -> str:
        return " ".join(_WORDS[j] for j in stream.below(len(_WORDS), length))

    made = [task.made_up(words, stream, LABELS) for _ in range(count)]
    return [replace(r, unit=unit(i), origin=f"made up:{i}") for i, r in enumerate(made)]


def dataset_of(records: Sequence[Record], config: RunConfig, model: SharedModel) -> EncodedDataset:
    """Encode records for a model."""
    task, length = task_of(config), config.model.max_length
    return task.encode(records, model.tokenizer, length, model.labels)


def start_of(model: SharedModel) -> NDArray[np.float32]:
    """Return an adapter (D,) with no zeros in what the first round trains, the same each time.

    Where public texts decide on its A, made-up ones do: it is not the A that sites have themselves.
    """
    method = adapter_of(model)
    with model.unchanged():
        method.place(method.start())
        if model.method == "eva":
            explain_inputs(model, _public_texts())
        values = RandomStream.seeded(5, "selftest adapter").normal(method.trained.length)
        model.set_adapter(0.3 * values)
        return method.held()


def _public_texts() -> list[list[int]]:
    """Return made-up texts as tokens, more of them than any layer's rank."""
    stream = RandomStream.seeded(11, "selftest", "public texts")
    return [[4 + int(place) for place in stream.below(len(_WORDS), 12)] for _ in range(8)]


def gradients_of(model: SharedModel, dataset: EncodedDataset) -> Vector:
    """Return each record's gradient (N, P), one record at a time, by plain autograd."""
    rows = []
    for index in range(len(dataset)):
        loss = record_losses(model, dataset.batch(np.array([index]))).sum()
        parts = torch.autograd.grad(loss, model.trained)
        rows.append(torch.cat([part.reshape(-1) for part in parts]).double().numpy())
    return np.stack(rows)


def clipped(gradients: Vector, norm: float) -> Vector:
    """Scale each row (U, P) down to at most ``norm``."""
    norms = np.linalg.norm(gradients, axis=1, keepdims=True)
    return gradients * np.minimum(1.0, norm / norms)


def plain_steps(model: SharedModel, dataset: EncodedDataset, settings: LocalSettings) -> Vector:
    """Return what gradient descent on all records changes, (P,): no clipping, no noise."""
    manifest, everyone = model.manifest, dataset.batch(np.arange(len(dataset)))
    rates = manifest.per_value(settings.learning_rate, settings.head_learning_rate)
    before = [parameter.detach().clone() for parameter in model.trained]
    for _ in range(settings.steps):
        loss = record_losses(model, everyone).sum() / settings.expected_batch_size
        gradients = torch.autograd.grad(loss, model.trained)
        with torch.no_grad():
            for segment, parameter, gradient in zip(
                manifest.segments, model.trained, gradients, strict=True
            ):
                parameter.sub_(float(rates[segment.slice][0]) * gradient)
    moved = [p.detach() - b for p, b in zip(model.trained, before, strict=True)]
    with torch.no_grad():
        for parameter, values in zip(model.trained, before, strict=True):
            parameter.copy_(values)
    return torch.cat([part.reshape(-1) for part in moved]).double().numpy()


def save_random_transformer(folder: Path, kind: Kind) -> Path:
    """Write a Transformer of two layers with random weights and a tokenizer of made-up words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast

    special = ["<pad>", "<unk>", "<s>", "</s>"]
    vocabulary = {word: index for index, word in enumerate([*special, *_WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",  # noqa: S106
        unk_token="<unk>",  # noqa: S106
        bos_token="<s>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
    ).save_pretrained(folder)
    size = {
        "vocab_size": len(vocabulary),
        "hidden_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 32,
    }
    config = AutoConfig.for_model(kind, **size, pad_token_id=0, bos_token_id=2, eos_token_id=3)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = (AutoModel if kind == "bert" else AutoModelForCausalLM).from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                # Larger than the usual start, so that records differ clearly.
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder
