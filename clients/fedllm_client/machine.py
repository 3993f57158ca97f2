"""Whether a machine can do a site's work: disk, memory, and one private step of training."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import tempfile
import time
from itertools import count
from pathlib import Path

from fedllm.config import RunConfig, parse
from fedllm.errors import FedllmError, RefusedError
from fedllm.tasks import LearningTask, task_for_base
from fedllm_client.checking import DoubtError

# Where a site says on which device it trains.
SITE_KEY = "model.device of the site's policy"
_MIN_DISK, _GOOD_DISK = 256 << 20, 2 << 30


def check_disk(folder: Path) -> str:
    """Write a file where the ledger will be, and see what is free there.

    Raises
    ------
    FedllmError
        If nothing can be written, or hardly anything is free; `DoubtError` if little is.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".check.") as stream:
            stream.write(b"x")
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise FedllmError(
            f"{folder} cannot be written ({error.strerror or type(error).__name__})",
            "make the kit's folder writable for the user that runs the client",
        ) from None
    free = shutil.disk_usage(folder).free
    if free < _MIN_DISK:
        raise FedllmError(
            f"{_size(free)} free in {folder}", "free disk space: the ledger must be written"
        )
    if free < _GOOD_DISK:
        raise DoubtError(f"{_size(free)} free in {folder}", "2 GiB leave room for years")
    return f"{_size(free)} free in {folder}, writable"


def check_writable(path: Path) -> None:
    """See that a ledger takes entries; writes none.

    Raises
    ------
    FedllmError
        If it does not.
    """
    try:
        with sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=10.0) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        raise FedllmError(
            f"the ledger {path} cannot be written ({error})",
            "let the user that runs the client own it, and stop other programs that hold it",
        ) from None


def check_training(path: str, allowed: tuple[str, ...], device: str | None = None) -> str:
    """Train one private step on made-up text; nothing of the site's records is touched.

    Parameters
    ----------
    allowed : tuple of str
        Fingerprints of base models; empty allows any.
    device : str, optional
        Where the site trains; the processor when left out.

    Raises
    ------
    RefusedError
        If the model is none of those ``allowed``.
    ConfigError
        If this machine lacks the device.
    """
    from fedllm.models.checkpoints import checkpoint_folder, fingerprints, read_config
    from fedllm.models.device import chosen_device

    where = chosen_device(device, SITE_KEY)
    folder = checkpoint_folder(path)
    prints = fingerprints(folder)
    actual = prints.current
    if allowed and prints.earlier in allowed and actual not in allowed:
        raise RefusedError(
            f"allow.models lists {prints.earlier}, an earlier kind of fingerprint of the model in "
            f"{path}, which did not cover all its files",
            f"compare {actual} with the coordinator's, and list it instead",
        )
    if allowed and actual not in allowed:
        raise RefusedError(
            f"the model in {path} has the fingerprint {actual}, which allow.models does not list",
            "get the model that the federation agreed on, or add this fingerprint to allow.models",
        )
    _, architecture = read_config(folder)
    task = task_for_base(architecture.causal, architecture.prompted)
    seconds = _made_up_step(path, task, min(128, architecture.positions or 128), str(where))
    on = "" if where.type == "cpu" else f" on {where}"
    return f"a private step on made-up text took {seconds:.1f} s{on}; model {actual}"


def _made_up_step(path: str, task: LearningTask, length: int, device: str) -> float:
    from fedllm.randomness import RandomStream
    from fedllm.training.local import LocalSettings, train_locally

    values = {
        "name": "check",
        "task": task.name,
        # The step that takes most: all layers adapted.
        "model": {
            "path": path,
            "max_length": length,
            "feature_center": "zero",
            "head_start": "zero",
        },
        "lora": {"rank": 8},
        "engine": {"device": device},
        "data": {"train": "made up", "labels": ["one", "two"]},
    }
    config = parse(RunConfig, values, "check")
    labels = task.labels(config.data, ())
    model = task.load_model(config, labels)
    text = "This sentence was made up to try one step of training. " * 8
    number = count()
    # One label for all: opposite ones would cancel for a tokenizer that knows none of the words.
    records = [
        task.made_up(lambda _: f"{text}{next(number)}", RandomStream.secure(), labels[:1])
        for _ in range(8)
    ]
    dataset = task.encode(records, model.tokenizer, length, labels)
    settings = LocalSettings(
        steps=1,
        sampling_rate=1.0,
        expected_batch_size=8.0,
        microbatch_size=8,
        optimizer="adam",
        learning_rate=1e-3,
        head_learning_rate=1e-3,
        clipping_norm=1.0,
        noise_multiplier=1.0,
    )
    started = time.monotonic()
    train_locally(model, dataset, settings, RandomStream.secure(), RandomStream.secure())
    return time.monotonic() - started


def check_memory() -> str:
    """Compare this process's peak, which a training step just drove up, with what is free.

    Raises
    ------
    DoubtError
        If less is free.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    free = _available_memory()
    text = f"{_size(free)} available; this check used {_size(peak)} at most"
    if free < peak:
        raise DoubtError(text, "give the machine more memory, or stop other programs")
    return text


def _available_memory() -> int:
    """Bytes that can be taken without swapping, within the limit of a container (cgroup v2)."""
    fields = dict(
        line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line
    )
    free = int(fields["MemAvailable"].split()[0]) << 10
    limits = Path("/sys/fs/cgroup")
    try:
        limit = (limits / "memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int((limits / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return free


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 1 << 30 else f"{size >> 20} MiB"
