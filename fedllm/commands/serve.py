"""``fedllm serve``: models over HTTP, in the form of OpenAI's API."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fedllm.commands import asking, options
from fedllm.errors import ConfigError
from fedllm.extras import remedy_of

if TYPE_CHECKING:
    from fedllm.serving.server import Address


def serve(
    models: list[str] = typer.Argument(
        metavar="RUN|ADAPTER|DIR...",
        help="Folders of runs, adapters, exports or base models; NAME=FOLDER names one for "
        "requests.",
    ),
    host: str = typer.Option("127.0.0.1", help="Address to listen on; loopback by default."),
    port: int = typer.Option(8000, min=0, max=65535, help="Port; 0 takes a free one."),
    keys: Path | None = typer.Option(
        None, metavar="FILE", help="Keys of tenants and the models of each (TOML)."
    ),
    certificate: Path | None = typer.Option(
        None, "--tls-certificate", metavar="FILE", help="TLS certificate (PEM)."
    ),
    private_key: Path | None = typer.Option(
        None, "--tls-key", metavar="FILE", help="Its private key (PEM)."
    ),
    guard: bool = typer.Option(
        False,
        "--guard",
        help="Mask what looks like a card, an account, a phone number, an e-mail address or a "
        "national identifier in texts that are written.",
    ),
    patterns: Path | None = typer.Option(
        None,
        "--guard-patterns",
        metavar="FILE",
        help="Patterns of your own (TOML); turns the guard on.",
    ),
    rows: int = typer.Option(16, "--batch", min=1, metavar="N", help="Texts written at once."),
    waiting: int = typer.Option(
        64, min=0, metavar="N", help="Texts that may wait; more are refused with 429."
    ),
    time_s: float = typer.Option(
        120.0, "--time-limit", min=1, metavar="SECONDS", help="Time for one request."
    ),
    most_tokens: int = typer.Option(
        1024, "--max-new-tokens", min=1, metavar="N", help="Most tokens that a request may get."
    ),
    cache_mib: int = typer.Option(
        512,
        "--prompt-cache",
        min=0,
        metavar="MIB",
        help="Memory for keys and values of prompts, so that a prompt that begins as an earlier "
        "one of the same key is read from there on; 0 keeps none.",
    ),
    base: str | None = options.BASE,
    kit: Path | None = asking.KIT,
    device: str | None = asking.DEVICE,
    max_length: int | None = asking.MAX_LENGTH,
) -> None:
    """Serve models over HTTP until stopped.

    Speaks OpenAI's API as far as it goes: /v1/models, /v1/chat/completions, /v1/completions,
    /v1/embeddings, and /v1/classify for labels; /health and /metrics beside them. Listens on
    loopback unless --host says otherwise, which needs keys: --keys, or FEDLLM_API_KEY in the
    environment. Nothing that is asked or answered is logged. With --kit each run is also served
    with the site's own layer on top, under its name with -own behind.
    """
    # Whatever can be refused is refused before torch is imported, which takes many seconds.
    if any(find_spec(name) is None for name in ("fastapi", "prometheus_client", "uvicorn")):
        raise ConfigError(
            "packages that `fedllm serve` needs are not installed", remedy_of("serve")
        )
    from fedllm.processes import leave, leaving_on_signals, say, stop_on_signals
    from fedllm.runs.start import require_model
    from fedllm.serving.guard import read_guard
    from fedllm.serving.keys import ENVIRONMENT, read_keys
    from fedllm.serving.names import named_models
    from fedllm.serving.server import Address, listening_socket, tls_context
    from fedllm.serving.server import serve as listen

    environment = os.environ.get(ENVIRONMENT)
    address = Address(host, port, certificate, private_key)
    _require_safe(address, keys is not None or environment is not None)
    places = named_models(models, kit is not None)
    for place in places.values():
        require_model(place.folder)
    known = read_keys(keys, environment, frozenset(places))
    masks = read_guard(patterns) if guard or patterns is not None else None
    tls = tls_context(address)
    own_layer = None if kit is None else asking.own_layer_of(kit)
    with listening_socket(address) as where:
        with leaving_on_signals():
            say(f"loading {', '.join(places)}")
            from fedllm.models.prompt_cache import PromptCache
            from fedllm.serving.door import Gate, Limits
            from fedllm.serving.engine import Engine
            from fedllm.serving.metrics import Metrics
            from fedllm.serving.served import serve_models
            from fedllm.serving.service import Service, application

            served = serve_models(
                models, base, device, max_length, own_layer, lambda name: say(f"loading {name}")
            )
        stop = stop_on_signals()
        metrics, cache = Metrics(), PromptCache(cache_mib << 20)
        engine = Engine(rows, waiting, metrics.failed, cache, known.shared)
        metrics.watch(lambda: engine.load, lambda: cache.used_bytes)
        limits = Limits(time_s=time_s)
        service = Service(served, engine, metrics, limits, masks, most_tokens)
        gate = Gate(application(service), known, limits, metrics, say, lambda: engine.is_alive)
        if not known.tenants:
            say("no keys: every program of this machine can ask")
        engine.start()
        try:
            listen(gate, where, tls, stop, lambda own: say(_told(served, address, own)), time_s)
        finally:
            engine.stop(5.0)
    say("stopped")
    if threading.active_count() > 1:
        leave(stop.exit_code)
    raise typer.Exit(stop.exit_code)


def _told(names: Iterable[str], address: Address, port: int) -> str:
    """Say what is served where."""
    scheme = "http" if address.certificate is None else "https"
    return f"serving {', '.join(names)} on {scheme}://{address.host}:{port}/v1"


def _require_safe(address: Address, has_keys: bool) -> None:
    """Refuse half a certificate, and another address than loopback without keys."""
    if (address.certificate is None) != (address.key is None):
        raise ConfigError(
            "a certificate needs its key, and the other way round",
            "give --tls-certificate and --tls-key, or neither",
        )
    if not address.is_loopback and not has_keys:
        raise ConfigError(
            f"without keys, everybody who reaches {address.host} could ask these models",
            "give --keys FILE, or set FEDLLM_API_KEY; or leave --host out",
        )
