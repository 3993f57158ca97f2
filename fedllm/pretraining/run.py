"""One pretraining run: tokenizer, shards, model, loop, and the run folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from fedllm.errors import CheckpointError
from fedllm.files import atomic_directory, share_as_new, write_bytes, write_json
from fedllm.pretraining.architectures import build_model, choose_attention, measure
from fedllm.pretraining.card import model_card
from fedllm.pretraining.config import PretrainConfig
from fedllm.pretraining.folder import check_output, claim, is_finished, locked
from fedllm.pretraining.loop import TrainingLoop
from fedllm.pretraining.manifest import Manifest, load_manifest
from fedllm.pretraining.material import held_out_text, make_objective, make_sampler
from fedllm.pretraining.memory import keep_freed_memory
from fedllm.pretraining.metrics import curve
from fedllm.pretraining.parallel import World, joined_world, whole_model
from fedllm.pretraining.shards import tokenise, training_texts
from fedllm.pretraining.tokenizer import load_tokenizer, train_tokenizer
from fedllm.runs import names
from fedllm.runs.observer import Observer, Observers, Start
from fedllm.runs.plain_json import finite
from fedllm.runs.progress import ProgressFile


def run_pretraining(
    config: PretrainConfig, out: Path, observers: Sequence[Observer] = (), resume: bool = False
) -> Path:
    """Pretrain a model and return its Hugging Face checkpoint folder, ``out/model``.

    Writes ``run.toml``, ``inputs.json``, ``metrics.jsonl``, ``summary.json``, ``checkpoints/``,
    ``tokens/`` and ``tokenizer/`` beside it. With ``resume`` a stopped run goes on after its newest
    checkpoint and follows the curve it would have followed; several processes under
    ``torchrun`` share the work.

    Raises
    ------
    ConfigError, DataError
        If the configuration, a text file or the run folder does not fit.
    CheckpointError
        If a checkpoint or a model to start from is unusable.
    TrainingError
        If the loss diverges; the last good checkpoint is kept.
    """
    check_output(config, out, resume)
    with (
        joined_world() as world,
        locked(out) if world.first else nullcontext(),
        _process_settings(config),
    ):
        first = Observers.of(observers, [ProgressFile(out)]) if world.first else Observers()
        try:
            return _run(config, out, first, resume, world)
        finally:
            first.close()


def _run(config: PretrainConfig, out: Path, observer: Observer, resume: bool, world: World) -> Path:
    if world.first:
        claim(config, out, resume)
        if resume and is_finished(out):
            observer.note(f"{out} is finished already")
        else:
            tokenise(config, _prepare_tokenizer(config, out, observer), out / names.TOKENS)
    world.wait()
    if resume and is_finished(out):
        return out / names.MODEL
    tokenizer = load_tokenizer(out / names.TOKENIZER)
    manifest = load_manifest(out / names.TOKENS)
    model = build_model(config.model, config.training, tokenizer, config.seed)
    nn.Module.to(model, world.device)
    choose_attention(model, world.device, config.training.sequence_length)
    observer.note(_introduction(config, model, manifest))
    loop = TrainingLoop(
        config,
        make_objective(config, model, tokenizer, manifest),
        make_sampler(config, manifest, out / names.TOKENS),
        held_out_text(config, manifest, out / names.TOKENS),
        tokenizer,
        out,
        world,
        observer,
    )
    if resume and (step := loop.resume()):
        observer.note(f"going on after step {step}")
    observer.started(Start(config.name, config, "steps", config.training.steps, loop.step))
    evaluation = loop.run()
    whole = whole_model(model, world)
    if world.first and whole is not None:
        _save_model(whole, tokenizer, out / names.MODEL)
        weights = _sha256(out / names.MODEL / "model.safetensors")
        points = curve(out / names.METRICS)
        card = model_card(config, manifest, model.num_parameters(), weights, points)
        write_bytes(out / names.MODEL / "README.md", card.encode())
        summary = _summary(config, manifest, model, weights) | {
            "processes": world.size,
            "metrics": evaluation,
            "seconds": loop.seconds,
        }
        write_json(out / names.SUMMARY, finite(summary))
    world.wait()
    return out / names.MODEL


def _summary(
    config: PretrainConfig, manifest: Manifest, model: PreTrainedModel, weights: str
) -> dict[str, object]:
    return {
        "run": config.name,
        "task": "pretraining",
        "objective": config.objective,
        "model": {
            "path": "model",
            "architecture": config.model.architecture,
            "parameters": model.num_parameters(),
            "sha256": weights,
        },
        "tokenizer": {"vocabulary": model.config.vocab_size},
        "data": {
            "fingerprint": manifest.fingerprint,
            "documents": sum(p.documents for p in manifest.sources),
            "tokens": sum(p.tokens for p in manifest.sources),
            "bytes": sum(p.text_bytes for p in manifest.sources),
            "duplicates": sum(p.duplicates for p in manifest.sources),
            "excluded": sum(p.excluded for p in manifest.sources),
        },
        "steps": config.training.steps,
        "tokens": config.training.steps * _step_tokens(config),
    }


@contextmanager
def _process_settings(config: PretrainConfig) -> Iterator[None]:
    keep_freed_memory()
    threads = torch.get_num_threads()
    try:
        if config.training.threads is not None:
            torch.set_num_threads(config.training.threads)
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)


def _prepare_tokenizer(
    config: PretrainConfig, out: Path, observer: Observer
) -> PreTrainedTokenizerBase:
    folder = out / names.TOKENIZER
    if (folder / "tokenizer.json").exists():
        return load_tokenizer(folder)
    given = config.tokenizer.path or config.model.start
    if given is not None:
        tokenizer = load_tokenizer(Path(given))
    else:
        observer.note(f"training a tokenizer of {config.tokenizer.vocabulary} tokens")
        texts = training_texts(config, config.tokenizer.sample_mb * 10**6)
        tokenizer = train_tokenizer(texts, config.tokenizer, config.model.architecture)
    with atomic_directory(folder) as temporary:
        tokenizer.save_pretrained(temporary)
    return tokenizer


def _step_tokens(config: PretrainConfig) -> int:
    return config.training.batch_rows * config.training.sequence_length


def _introduction(config: PretrainConfig, model: PreTrainedModel, manifest: Manifest) -> str:
    size = measure(model, config.training)
    tokens = sum(p.tokens for p in manifest.sources)
    planned = config.training.steps * _step_tokens(config)
    return (
        f"{config.model.architecture} of {size.parameters / 1e6:.2f}M parameters, about "
        f"{size.training_bytes / 1e9:.1f} GB to train; corpus of {tokens / 1e6:.2f}M tokens, "
        f"{config.training.steps} steps of {_step_tokens(config)} tokens "
        f"({planned / max(1, tokens):.1f} passes)"
    )


def _save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    with atomic_directory(folder) as temporary:
        transformers_logging.disable_progress_bar()
        model.save_pretrained(temporary)
        share_as_new(temporary, "*.safetensors")
        tokenizer.save_pretrained(temporary)
        for file in temporary.iterdir():
            file.chmod(0o644)
        if not (temporary / "model.safetensors").exists():
            raise CheckpointError(f"{folder}: the model was not written as one file")


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
