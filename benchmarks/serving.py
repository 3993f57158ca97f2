"""How fast the service's batch writes, beside transformers' own `generate` and one after another.

    .venv/bin/python benchmarks/serving.py [--model DIR] [--rows 8] [--tokens 48] [--repeats 3]
                                           [--known 256] [--new 16]

All three write the same number of tokens after the same prompts of unequal length, the likeliest
each time, in one process and one after the other; the median of the repeats counts, in seconds of
the processor. No text ends before its last token. Without a model's folder: a random Llama of 8
layers of width 512.

Then the time to the first token of one prompt, of which so many tokens were read before and so
many are new, beside the same prompt where nothing is kept.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from tokenizers import Tokenizer, models
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from fedllm.models.drawing import LIKELIEST
from fedllm.models.generation import Generator, Writing
from fedllm.models.plain import load_plain_model
from fedllm.models.prompt_cache import KeptPrompts, PromptCache
from fedllm.models.rows import Row, row_of
from fedllm.models.running_batch import RunningBatch
from fedllm.models.transcript import Transcript

WORDS = 512


def main() -> None:
    """Print tokens a second of each way, and the ratios."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--model", metavar="DIR")
    options.add_argument("--rows", type=int, default=8)
    options.add_argument("--tokens", type=int, default=48)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--known", type=int, default=256)
    options.add_argument("--new", type=int, default=16)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--quick", action="store_true", help="a small size, to see that it runs")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    generator = loaded(given.model) if given.model else random_llama(64 if given.quick else 512)
    tokens, repeats = (6, 1) if given.quick else (given.tokens, given.repeats)
    prompts = [
        [(7 * row + place) % (WORDS - 8) + 4 for place in range(8 + 3 * row)]
        for row in range(given.rows)
    ]
    ways: dict[str, Callable[[], None]] = {
        "transformers": lambda: by_transformers(generator, prompts, tokens),
        "together": lambda: together(generator, prompts, tokens),
        "one by one": lambda: [together(generator, [p], tokens) for p in prompts][-1],
    }
    for way in ways.values():
        way()
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            begun = time.process_time()
            way()
            spent[name].append(time.process_time() - begun)
    rates = {name: given.rows * tokens / statistics.median(times) for name, times in spent.items()}
    for name, rate in rates.items():
        print(f"{name:<14} {rate:8.1f} tokens a CPU-second")
    print(f"together / transformers: ratio {rates['together'] / rates['transformers']:.2f}")
    print(f"together / one by one: ratio {rates['together'] / rates['one by one']:.2f}")
    first_token(generator, 48 if given.quick else given.known, given.new, repeats)


def loaded(folder: str) -> Generator:
    """Load a generative base model."""
    found = load_plain_model(folder)
    return Generator(found.network, found.tokenizer, ())


def random_llama(width: int) -> Generator:
    """Make a model that says something, and a tokenizer of as many words."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=width,
        num_attention_heads=8,
        num_key_value_heads=2,
        num_hidden_layers=8,
        intermediate_size=int(2.7 * width),
        max_position_embeddings=1024,
    )
    words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(WORDS)}, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", unk_token="w0")
    return Generator(LlamaForCausalLM(config).eval(), tokenizer, ())


@torch.no_grad()
def by_transformers(generator: Generator, prompts: list[list[int]], tokens: int) -> None:
    """Write a batch by `generate`, padded on the left."""
    ids, mask = generator.padded(prompts, 0)
    generator.network.generate(
        ids,
        attention_mask=mask,
        generation_config=GenerationConfig(
            max_new_tokens=tokens, do_sample=False, use_cache=True, pad_token_id=0
        ),
    )


def together(generator: Generator, prompts: list[list[int]], tokens: int) -> None:
    """Write prompts as the service does."""
    batch = RunningBatch(generator.network, 0)
    batch.add(
        [
            Row(
                tuple(prompt),
                LIKELIEST.drawing(prompt),
                Transcript(generator.tokenizer, (), (), tokens),
            )
            for prompt in prompts
        ]
    )
    while len(batch):
        batch.step()


def first_token(generator: Generator, known: int, new: int, repeats: int) -> None:
    """Print the time to a prompt's first token with and without its beginning kept."""
    beginning = [(5 * place) % (WORDS - 8) + 4 for place in range(known)]
    kept = PromptCache().of("model", "tenant")
    read(generator, beginning, kept)
    spent: dict[str, list[float]] = {"kept": [], "not kept": []}
    for repeat in range(repeats + 1):
        prompt = beginning + [(repeat + 3 * place) % (WORDS - 8) + 4 for place in range(new)]
        for name, place in (("not kept", None), ("kept", kept)):
            begun = time.process_time()
            read(generator, prompt, place)
            spent[name].append(time.process_time() - begun)
    # The first warms up.
    times = {name: 1e3 * statistics.median(each[1:]) for name, each in spent.items()}
    for name, ms in times.items():
        print(f"first token after {known} + {new} tokens, {name:<8} {ms:8.1f} CPU-ms")
    print(f"kept / not kept: ratio {times['kept'] / times['not kept']:.2f}")


def read(generator: Generator, prompt: list[int], kept: KeptPrompts | None) -> None:
    """Read a prompt and write one token."""
    batch = RunningBatch(generator.network, 0)
    batch.add([row_of(generator, tuple(prompt), Writing(1), kept)])
    while len(batch):
        batch.step()


if __name__ == "__main__":
    main()
