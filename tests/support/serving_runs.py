"""Folders of runs as they end, with adapters that answer somehow; and a service of such models."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.run_folder import summary
from support.tasks import load_model

from fedllm.config import RunConfig, parse, to_toml  # isort: skip
from fedllm.config.task import trains_a_head  # isort: skip
from fedllm.randomness import RandomStream  # isort: skip

LABELS = ("one", "two", "three")


def make_run(
    base: Path,
    folder: Path,
    task: str = "classification",
    name: str = "run",
    **sections: Any,
) -> Path:
    """Write the folder of a finished run; sections change its configuration."""
    values = {
        "name": name,
        "task": task,
        "data": {"train": "unused.jsonl"},
        "lora": {"rank": 2, "last_layers": 2},
        **sections,
    }
    values["model"] = {"path": str(base), "max_length": 16} | sections.get("model", {})
    config = parse(RunConfig, values, "test")
    model = load_model(config, LABELS if trains_a_head(task) else ())
    change = RandomStream.seeded(3, task, name).normal(model.manifest.length)
    model.set_adapter(model.adapter() + 0.5 * change)
    (folder / name).mkdir()
    (folder / name / "run.toml").write_text(to_toml(config))
    (folder / name / "summary.json").write_text(json.dumps(summary(run=name, task=task)))
    model.save_adapter(folder / name / "adapter")
    return folder / name


@pytest.fixture
def released(tiny_checkpoint, tmp_path) -> Callable[..., Path]:
    """Make the folder of a finished run on a tiny checkpoint."""

    def make(kind: str = "bert", task: str = "classification", **settings: Any) -> Path:
        return make_run(tiny_checkpoint(kind), tmp_path, task, **settings)

    return make


@dataclass
class Running:
    """A service that listens."""

    port: int
    engine: Any
    service: Any
    log: list[str] = field(default_factory=list)
    scheme: str = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"


@contextmanager
def service(
    models: dict[str, Any],
    keys: Any = None,
    guard: Any = None,
    rows: int = 16,
    waiting: int = 64,
    time_s: float = 60.0,
    cache: Any = None,
    tls: tuple[Path, Path] | tuple[None, None] = (None, None),
    **limits: Any,
) -> Iterator[Running]:
    """Listen on loopback, as `fedllm serve` does, in threads of this process.

    ``tls``: certificate and key.
    """
    from fedllm.models.prompt_cache import PromptCache
    from fedllm.serving.door import Gate, Limits
    from fedllm.serving.engine import Engine
    from fedllm.serving.keys import Keys
    from fedllm.serving.metrics import Metrics
    from fedllm.serving.server import Address, listening_socket, serve, tls_context
    from fedllm.serving.service import Service, application

    metrics, log = Metrics(), []
    keys = keys or Keys()
    cache = PromptCache() if cache is None else cache
    engine = Engine(rows, waiting, metrics.failed, cache, keys.shared)
    metrics.watch(lambda: engine.load, lambda: cache.used_bytes)
    bounds = Limits(time_s=time_s, **limits)
    made = Service(models, engine, metrics, bounds, guard, 64)
    gate = Gate(application(made), keys, bounds, metrics, log.append, lambda: engine.is_alive)
    stop, ports, listening = threading.Event(), [], threading.Event()

    def ready(port: int) -> None:
        ports.append(port)
        listening.set()

    engine.start()
    address = Address("127.0.0.1", 0, *tls)
    thread = threading.Thread(
        target=serve, args=(gate, listening_socket(address), tls_context(address), stop, ready, 5)
    )
    thread.start()
    try:
        assert listening.wait(30)
        yield Running(ports[0], engine, made, log, "http" if tls[0] is None else "https")
    finally:
        stop.set()
        thread.join(30)
        engine.stop(5)
        assert not thread.is_alive()
