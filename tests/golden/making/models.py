"""Make the kept base model, an adapter of it, and the adapter from which every run starts."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch
from support.tasks import load_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from fedllm.config import RunConfig, parse
from fedllm.files import write_bytes, write_json
from fedllm.randomness import RandomStream

LABELS = ("one", "two", "three")
WORDS = ("lost", "open", "close", "card", "cash", "bank", "loan")


def model_config() -> RunConfig:
    """Return what the kept adapter was made for."""
    values = {
        "name": "adapter",
        "task": "classification",
        "seed": 11,
        "model": {"path": "model", "max_length": 16},
        "lora": {"rank": 2},
        "data": {"train": "records.jsonl", "labels": LABELS},
    }
    return parse(RunConfig, values, "golden")


def make(folder: Path) -> None:
    """Write ``model`` and ``adapter``."""
    _base(folder / "model")
    # peft writes down where the base model lies; no path of this machine shall be kept.
    with contextlib.chdir(folder):
        shared = load_model(model_config(), LABELS)
    kept = folder / "adapter"
    write_bytes(kept / "initial.f4", shared.initial.astype("<f4").tobytes())
    trained = RandomStream.seeded(3, "kept adapter").normal(shared.manifest.length)
    shared.set_adapter(0.3 * trained)
    shared.save_adapter(kept / "adapter")
    write_bytes(kept / "adapter.f4", shared.adapter().astype("<f4").tobytes())
    known = {"fingerprint": shared.fingerprint, "manifest": shared.manifest.fingerprint}
    write_json(kept / "known.json", known)


def _base(folder: Path) -> None:
    special = ["<pad>", "<unk>", "<s>", "</s>"]
    vocabulary = {word: index for index, word in enumerate([*special, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
    ).save_pretrained(folder)
    config = AutoConfig.for_model(
        "bert",
        vocab_size=len(vocabulary),
        hidden_size=4,
        num_attention_heads=1,
        num_hidden_layers=1,
        intermediate_size=4,
        max_position_embeddings=16,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        AutoModel.from_config(config).save_pretrained(folder)
