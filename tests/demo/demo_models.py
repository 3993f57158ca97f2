"""A tiny untrained model for tests."""

import json
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fedllm.pretraining.config import TokenizerSection
from fedllm.pretraining.tokenizer import train_tokenizer


def write_model(folder: Path, public: Path) -> Path:
    """Write an untrained Llama and a tokenizer made from ``public``."""
    texts = (json.loads(line)["text"] for line in public.read_text().splitlines())
    tokenizer = train_tokenizer(texts, TokenizerSection(vocabulary=400), "llama")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
