"""Tiny models to make smaller, and texts to see by what matters."""

from __future__ import annotations

import pytest
import torch
from support.tiny_models import save_tiny


@pytest.fixture
def texts():
    """Batches of single texts of random tokens, as calibration reads them."""

    def make(count: int, length: int = 9, seed: int = 0) -> list[dict[str, torch.Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        return [
            {
                "input_ids": torch.randint(4, 16, (1, length), generator=generator),
                "attention_mask": torch.ones(1, length, dtype=torch.int64),
            }
            for _ in range(count)
        ]

    return make


@pytest.fixture
def plain(tiny_checkpoint, tmp_path):
    """A tiny Transformer and the names of its blocks; Gemma's is grouped as the table has it."""
    from transformers import AutoModel, AutoModelForCausalLM

    from fedllm.models.checkpoints import read_config

    def make(kind: str):
        grouped = kind == "gemma3_text"
        folder = save_tiny(kind, tmp_path / kind) if grouped else tiny_checkpoint(kind)
        _, architecture = read_config(folder)
        auto = AutoModelForCausalLM if architecture.causal else AutoModel
        model = auto.from_pretrained(folder, dtype=torch.float32).eval()
        return model, architecture

    return make
