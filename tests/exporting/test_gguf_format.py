"""A GGUF file is read back as the run's model, by transformers and, where it is, by llama.cpp."""

from __future__ import annotations

import shutil

import pytest
import torch
from exporting.test_peft_format import use
from support.gguf_files import TEXTS, byte_pairs
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from tokenizers import decoders as tokenizer_decoders
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from fedllm.errors import ConfigError, TrainingError
from fedllm.exporting import gguf_format, gguf_tokens
from fedllm.exporting.export import export
from fedllm.models.importing import import_gguf

pytest.importorskip("gguf", reason="the extra 'gguf' is not installed")

NEAR, FULL = "sliding_attention", "full_attention"
SIZE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
GEMMA = SIZE | {
    "num_hidden_layers": 7,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 16,
    "layer_types": [NEAR] * 5 + [FULL, NEAR],
    "rope_parameters": {
        NEAR: {"rope_type": "default", "rope_theta": 10000.0},
        FULL: {"rope_type": "default", "rope_theta": 1000000.0},
    },
}


def pieces() -> Tokenizer:
    """A tokenizer of sentence pieces as Gemma's is."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = tokenizer_decoders.Sequence(
        [
            tokenizer_decoders.Replace("\u2581", " "),
            tokenizer_decoders.ByteFallback(),
            tokenizer_decoders.Fuse(),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[
            "<pad>",
            "<eos>",
            "<bos>",
            "<unk>",
            "<mask>",
            *(f"<0x{n:02X}>" for n in range(256)),
        ],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


@pytest.fixture
def base(tmp_path):
    def make(kind, **changes):
        folder = tmp_path / f"base-{kind}"
        if kind == "gemma3_text":
            named = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>"}
            tokenizer = PreTrainedTokenizerFast(
                tokenizer_object=pieces(), unk_token="<unk>", **named
            )
        else:
            tokenizer = PreTrainedTokenizerFast(
                tokenizer_object=byte_pairs(), eos_token="<|endoftext|>", pad_token="<|pad|>"
            )
        tokenizer.save_pretrained(folder)
        size = GEMMA if kind == "gemma3_text" else SIZE
        tokens = {
            "vocab_size": len(tokenizer) + 3,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
        }
        config = AutoConfig.for_model(
            kind, **size | tokens | {"tie_word_embeddings": kind != "llama"} | changes
        )
        with torch.random.fork_rng():
            torch.manual_seed(3)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(folder)
        return folder

    return make


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3_text"])
def test_the_file_is_read_back_as_the_runs_model(finished, base, tmp_path, kind):
    run = finished(kind, "instruction", base=base(kind))
    written = export(run, tmp_path / "out", "gguf")
    assert written.largest < 1e-3
    assert "float32" in written.what
    found = import_gguf(tmp_path / "out" / "model.gguf", tmp_path / "again")
    assert found.architecture == kind.removesuffix("_text")
    for path in (tmp_path / "out").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_a_base_in_the_hubs_cache_is_found(finished, base, hub, tmp_path):
    run = finished("llama", "instruction", base=base("llama"))
    hub(base("llama"))
    shutil.rmtree(tmp_path / "base-llama")
    assert export(run, tmp_path / "out", "gguf", "north/tiny").largest < 1e-3


def test_half_the_numbers_hold_what_was_trained(finished, base, tmp_path):
    run = finished("qwen2", "causal", base=base("qwen2"))
    written = export(run, tmp_path / "out", "gguf", dtype="float16")
    assert 0 < written.largest < 0.1
    kinds = import_gguf(tmp_path / "out" / "model.gguf", tmp_path / "again").kinds
    assert kinds.keys() == {"F16", "F32"}
    weak = finished("qwen2", "causal", "weak", base=base("qwen2"), trained=0.003)
    with pytest.raises(TrainingError, match="lose what was trained"):
        export(weak, tmp_path / "lost", "gguf", dtype="bfloat16")


@pytest.mark.parametrize("wrong", ["halves", "adapter", "tokens"])
def test_a_file_that_is_another_model_does_not_stand(finished, base, tmp_path, monkeypatch, wrong):
    if wrong == "halves":
        monkeypatch.setattr(gguf_format, "_laid_out", lambda config, name, values: values.float())
    elif wrong == "adapter":
        monkeypatch.setattr(
            gguf_format, "merged_base", lambda released: released.model.peft.unload()
        )
    else:
        monkeypatch.setattr(
            gguf_tokens, "_types", lambda added, tokens, pieces, unknown: [1] * len(tokens)
        )
        right = gguf_tokens.GgufTokens.write

        def write(self, writer):
            del self.merges[::2]
            right(self, writer)

        monkeypatch.setattr(gguf_tokens.GgufTokens, "write", write)
    run = finished("llama", "causal", base=base("llama"))
    with pytest.raises(TrainingError, match=r"lose what|otherwise|other places"):
        export(run, tmp_path / "out", "gguf")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("llama", {"hidden_act": "gelu"}, "hidden_act"),
        ("llama", {"attention_bias": True}, "attention_bias"),
        ("gemma3_text", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ("gemma3_text", {"query_pre_attn_scalar": 7}, "query_pre_attn_scalar"),
        ("gemma3_text", {"layer_types": [FULL] * 7}, "layer_types"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "rope_type",
        ),
    ],
)
def test_settings_that_the_file_cannot_say_are_refused(
    finished, base, tmp_path, kind, changes, words
):
    run = finished(kind, "causal", base=base(kind, **changes))
    with pytest.raises(ConfigError, match=rf"(?s){words}.*--format merged"):
        export(run, tmp_path / "out", "gguf")


def test_what_has_no_place_in_the_file_is_refused(finished, tmp_path):
    with pytest.raises(ConfigError, match=r"(?s)a head that a run trained.*onnx"):
        export(finished("llama"), tmp_path / "out", "gguf")
    with pytest.raises(ConfigError, match=r"'gpt2'.*llama, qwen2, gemma3_text"):
        export(finished("gpt2", "causal", "other"), tmp_path / "out", "gguf")
    # Whole words.
    with pytest.raises(ConfigError, match="WordLevel"):
        export(finished("llama", "causal", "words"), tmp_path / "out", "gguf")


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3_text"])
def test_llama_cpp_gives_the_same_greedy_answers(finished, base, tmp_path, kind):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    folder = base(kind)
    run = finished(kind, "instruction", base=folder)
    export(run, tmp_path / "gguf", "gguf")
    export(run, tmp_path / "peft", "peft")
    words = " ".join(TEXTS[:2]).split()
    prompts = [" ".join(words[place : place + 3]) for place in range(10)]
    prompts += [f"{words[place]}  {words[-place]}" for place in range(10)]
    # Some tokens each: random weights have ties within what llama.cpp rounds otherwise (it keeps
    # keys in float16), and behind one of these answers have nothing in common.
    mine = [line["answer"][:16] for line in use(tmp_path / "peft", folder, *prompts)]
    theirs = [line["answer"][:16] for line in use(tmp_path / "gguf", *prompts)]
    assert theirs == mine
    assert any(mine)
