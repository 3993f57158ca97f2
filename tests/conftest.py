"""What several folders of tests share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from support.tiny_models import WORDS, save_model, save_tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedllm.data.encode import EncodedDataset
    from fedllm.models.shared import SharedModel

# Models of a few thousand parameters gain nothing from threads, and lose much where other programs
# run: every operation waits for all of them. Tests of threads set their own number.
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parent.parent

# The same examples each time, on machines of any speed. HYPOTHESIS_PROFILE=search draws new ones.
settings.register_profile(
    "repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--run-slow"):
        return
    skip = pytest.mark.skip(reason="slow; run with --run-slow (make test-all)")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def public_data() -> Path:
    """The folder of public data sets; the test is skipped, with the reason, without it."""
    folder = Path(os.environ.get("FEDLLM_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "README.md").exists():
        pytest.skip(f"no public data in {folder}; set FEDLLM_DATA")
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders of random Transformers with three layers: "llama", "gpt2", "bert" and others."""
    folders: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in folders:
            folders[kind] = tmp_path_factory.mktemp(kind)
            _save_tiny_checkpoint(kind, folders[kind])
        return folders[kind]

    return make


def _save_tiny_checkpoint(kind: str, folder: Path) -> None:
    tokens = save_tokenizer(folder)
    size = {"vocab_size": tokens, "hidden_size": 16, "num_attention_heads": 2}
    if kind == "gpt2":
        size = {"vocab_size": tokens, "n_embd": 16, "n_head": 2, "n_layer": 3}
        size |= {"n_positions": 160}
    else:
        size |= {"num_hidden_layers": 3, "intermediate_size": 32, "max_position_embeddings": 160}
    if kind in ("llama", "mistral", "qwen2"):
        size |= {"num_key_value_heads": 1}
    save_model(kind, folder, size, encoder=kind in ("bert", "roberta"))


@pytest.fixture
def tiny_model(tiny_checkpoint: Callable[[str], Path]) -> Callable[..., SharedModel]:
    """Make a `SharedModel` of a tiny checkpoint, its adapter and head at random values."""
    from fedllm.config import RunConfig, parse
    from fedllm.config.task import trains_a_head
    from fedllm.randomness import RandomStream
    from fedllm.tasks import task_of

    def make(kind: str = "bert", task: str = "classification", **sections: Any) -> SharedModel:
        values = {
            "name": "tiny",
            "task": task,
            "model": {
                "path": str(tiny_checkpoint(kind)),
                "head_start": "zero",
                "feature_center": "zero",
                **sections.get("model", {}),
            },
            "data": {"train": "unused.jsonl"},
            "lora": {"rank": 2, "last_layers": 2, **sections.get("lora", {})},
            "engine": sections.get("engine", {}),
        }
        labels = ("one", "two", "three") if trains_a_head(task) else ()
        model = task_of(task).load_model(parse(RunConfig, values, "test"), labels)
        if sections.get("trained", True):
            values = RandomStream.seeded(3, kind, task).normal(model.manifest.length)
            model.set_adapter(0.3 * values)
        return model

    return make


@pytest.fixture
def random_dataset() -> Callable[..., EncodedDataset]:
    """Make an `EncodedDataset` of random tokens; ``persons`` gives each record's unit."""
    import numpy as np

    from fedllm.data.encode import (
        EncodedDataset,
        labels_as_given,
        labels_of_sequences,
        labels_of_tokens,
    )
    from fedllm.randomness import RandomStream

    labellings = {
        "classification": labels_of_sequences,
        "token_classification": labels_as_given,
    }

    def tags_of(stream: RandomStream, tokens: int) -> NDArray[np.int32]:
        drawn = stream.below(12, tokens).astype(np.int32)
        return np.where(drawn < 7, drawn, -100).astype(np.int32)

    def make(
        records: int, task: str = "classification", persons: list[int] | None = None, seed: int = 0
    ) -> EncodedDataset:
        stream = RandomStream.seeded(seed, "dataset")
        lengths = 3 + stream.below(9, records).astype(np.int64)
        classify, tagged = task == "classification", task == "token_classification"
        return EncodedDataset(
            tokens=4 + stream.below(len(WORDS), int(lengths.sum())).astype(np.int32),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            targets=stream.below(3 if classify else 2, records).astype(np.int32),
            units=np.asarray(persons if persons is not None else range(records), dtype=np.int64),
            number_of_units=records if persons is None else max(persons) + 1,
            labelling=labellings.get(task, labels_of_tokens),
            pad_id=0,
            max_length=16,
            # Every second token or so has no label, as a tokenizer's own.
            tags=tags_of(stream, int(lengths.sum())) if tagged else None,
        )

    return make
