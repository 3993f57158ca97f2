"""What a private step gains and loses where tokens are compared with some words, not with all.

    python benchmarks/sampled_words.py --model DIR --records FILE [--count 24] [--words 16384 32768]
    python benchmarks/sampled_words.py --quick

For each number of words (`training.sampled_words`) the gradient of the same records is taken with
all words and with so many, in turns, so that a busy machine slows both. FILE has a prompt and a
response in each line (.jsonl). The ratio is the median over records of CPU time. Likeness is the
cosine between the two gradients: of a record (median), and of the mean of gradients that are cut
to length one, which is what a step goes along. What is done once in a process is printed beside it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from decoders import encoded, gradient, loaded, made_up
from torch.nn.functional import cosine_similarity

from fedllm.data.encode import EncodedDataset
from fedllm.models.shared import SharedModel
from fedllm.randomness import RandomStream


def main() -> None:
    """Measure each number of words."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--records", type=Path)
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--words", type=int, nargs="+", default=[16384, 32768])
    parser.add_argument("--quick", action="store_true", help="a small random model")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.quick:
            arguments.model, arguments.records, _ = made_up(Path(folder))
            arguments.words = [16384]
        elif not (arguments.model and arguments.records):
            parser.error("give --model and --records, or --quick")
        lora = {"method": "ffa_orthonormal", "rank": 4}
        config, model = loaded(arguments.model, arguments.records, lora)
        data = encoded(config, model, arguments.records, arguments.count)
        for words in arguments.words:
            compare(model, data, words)


def compare(model: SharedModel, data: EncodedDataset, words: int) -> None:
    """Print what gradients of the records take and come to with so many words, and with all."""
    started = time.process_time()
    with model.words.drawn(words, RandomStream.seeded(0, "benchmark")):
        prepared = time.process_time() - started
    gradients: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    ratios, whole = [], []
    for index in range(len(data)):
        seconds = []
        for count, found in zip((None, words), gradients, strict=True):
            started = time.process_time()
            found.append(gradient(model, data, index, count))
            seconds.append(time.process_time() - started)
        ratios.append(seconds[1] / seconds[0])
        whole.append(seconds[0])
    exact, some = map(torch.stack, gradients)
    cut = [found / found.norm(dim=1, keepdim=True).clamp(min=1.0) for found in (exact, some)]
    print(
        f"{words} words: ratio {statistics.median(ratios):.2f} (a record with all: "
        f"{statistics.median(whole):.2f} CPU s, once in a process: {prepared:.1f}), likeness of a "
        f"record {cosine_similarity(exact, some).median():.3f}, of the mean of {len(data)} "
        f"{cosine_similarity(cut[0].mean(0), cut[1].mean(0), dim=0):.3f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
