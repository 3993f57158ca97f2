"""A run's folder and the public part of its work, the same in simulation and deployment."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedllm.audit.report.page import write_report
from fedllm.config import RunConfig
from fedllm.data.encode import EncodedDataset
from fedllm.locks import exclusive
from fedllm.models.shared import SharedModel
from fedllm.randomness import RandomStream
from fedllm.tasks import task_of
from fedllm.tasks.cache import process_models
from fedllm_server.metrics import read_reports
from fedllm_server.summary import Summary, make_summary, write_summary


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold a run folder as long as the block runs.

    Raises
    ------
    ConfigError
        If another process works in it.
    """
    out.mkdir(parents=True, exist_ok=True)
    busy = f"another process is working in {out}"
    with exclusive(out / ".lock", busy, "wait for it, or choose another --out"):
        yield


def public_part(config: RunConfig) -> tuple[SharedModel, EncodedDataset | None]:
    """Load the base model and the public test set, as the coordinator has them."""
    task = task_of(config.task)
    records = task.read_public(config.data)
    labels = task.labels(config.data, records)
    if config.data.test_limit is not None:
        order = RandomStream.seeded(config.seed, "test records").permutation(len(records))
        records = [records[i] for i in sorted(order[: config.data.test_limit])]
    model = process_models().get(config, labels)
    if not records:
        return model, None
    length = config.model.max_length
    return model, task.encode(records, model.tokenizer, length, labels)


def given_up(config: RunConfig) -> list[str]:
    """Say which protections a run does without."""
    warnings = []
    if not config.private:
        warnings.append("no differential privacy: the shared model may repeat private records")
    if config.encryption.scheme == "none":
        warnings.append("no encryption: the coordinator sees every site's update in clear")
    elif not config.encryption.masked:
        warnings.append(
            "no masks: coordinator and key authority together can read every site's update"
        )
    return warnings


def finish(
    out: Path,
    config: RunConfig,
    model: SharedModel,
    run: str,
    names: tuple[str, ...],
    began: float,
    simulated: bool = False,
) -> Summary:
    """Write adapter, summary and report of a run whose rounds are done.

    ``began`` is `time.perf_counter` at the start of the command.
    """
    model.save_adapter(out / "adapter")
    reports = read_reports(out / "metrics.jsonl")
    seconds = time.perf_counter() - began
    summary = make_summary(config, model, run, names, reports, seconds, simulated)
    write_summary(out, summary)
    write_report(out)
    return summary
