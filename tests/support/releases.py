"""A coordinator that released a run's model over TLS on loopback, and sites that fetch it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.federation import LABELS, small_config
from support.kits import make_federation
from support.ports import free_port
from support.run_folder import summary

from fedllm.canonical import sha256_hex
from fedllm.config import to_toml
from fedllm.config.site_policy import SiteModelSection
from fedllm.federation.protocol.releases import Release
from fedllm.federation.protocol.terms import shared_config
from fedllm.federation.site.memory import SiteMemory
from fedllm.federation.transport.listener import Listener
from fedllm.federation.transport.releases import Shelf
from fedllm.federation.transport.superlink import SuperLink
from fedllm.identity.kits import Kit, read_kit
from fedllm.models.checkpoints import fingerprint
from fedllm.privacy.accounting.events import Gaussian
from fedllm.privacy.ledger.budget import Ceiling, Charge
from fedllm.privacy.ledger.ledger import Ledger
from fedllm.runs import names
from fedllm.runs.job import Job, write_job
from fedllm_client.fetching import Fetched, fetch
from fedllm_client.releases import chosen, offered_releases
from fedllm_server.jobs import runs_folder
from fedllm_server.releasing import release_run, releases_folder

RUN_ID, NAME = "0123456789abcdef", "small"


class HostileShelf(Shelf):
    """A coordinator's releases, with what it gives changed on the way."""

    def __init__(self, kit: Path) -> None:
        super().__init__(releases_folder(kit), names.RELEASE, names.ADAPTER)
        self.change_list: Callable[[bytes], bytes] = lambda content: content
        self.change_piece: Callable[[bytes, bytes], bytes] = lambda body, content: content
        self.asked: list[dict[str, Any]] = []

    def listed(self) -> bytes:
        return self.change_list(super().listed())

    def piece(self, body: bytes) -> bytes:
        self.asked.append(json.loads(body))
        return self.change_piece(body, super().piece(body))


def tiny_classifier(checkpoint: Path) -> Any:
    """Load a model of the kind that the runs here are of."""
    from fedllm.tasks import task_of

    config = small_config(checkpoint)
    return task_of(config).load_model(config, LABELS)


@dataclass
class Releasing:
    """The two ends; `close` stops the listener."""

    folder: Path
    checkpoint: Path
    port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        self.model = tiny_classifier(self.checkpoint)
        coordinator = {"hosts": ["127.0.0.1"], "port": self.port}
        make_federation(self.folder / "operator", coordinator=coordinator)
        self.kit = read_kit(self.kit_folder("coordinator"), "coordinator")
        self.shelf = HostileShelf(self.kit.folder)
        assert self.kit.server_certificate is not None
        assert self.kit.server_key is not None
        listener = Listener(
            "127.0.0.1", self.port, self.kit.server_certificate, self.kit.server_key
        )
        self.link = SuperLink(self.folder / "superlink.sqlite", listener, self.shelf)
        self.link.register(self.kit.roster.node_keys)
        self.link.start()
        self.reset()

    def reset(self) -> None:
        """Begin anew: one finished run, nothing released, nothing at the sites."""
        self.base = SiteModelSection(path=str(self.checkpoint))
        self.shelf.__init__(self.kit.folder)  # type: ignore[misc]
        for folder in (
            runs_folder(self.kit.folder),
            releases_folder(self.kit.folder),
            self.folder / "models",
            *(self.kit_folder(name) / "state" for name in ("anne", "bob")),
        ):
            shutil.rmtree(folder, ignore_errors=True)
        self.finish_run(NAME, RUN_ID)

    def close(self) -> None:
        """Stop the listener."""
        self.link.stop()

    def kit_folder(self, name: str) -> Path:
        """Return a party's kit."""
        return self.folder / "operator" / "kits" / name

    def finish_run(self, name: str, run_id: str) -> Path:
        """Lay out a finished run's folder, as far as a release needs it."""
        folder = runs_folder(self.kit.folder) / name
        config = small_config(self.checkpoint, name=name)
        self.model.save_adapter(folder / names.ADAPTER)
        (folder / names.RUN_TOML).write_text(to_toml(config))
        self.terms = to_toml(shared_config(config))
        (folder / names.TERMS).write_text(self.terms)
        about = {"path": "/srv/secret/base", "fingerprint": fingerprint(self.checkpoint)}
        told = summary(run=name, run_id=run_id, model=about)
        (folder / names.SUMMARY).write_text(json.dumps(told))
        write_job(folder, Job(name, "finished", "2026-01-01T00:00:00+00:00"))
        return folder

    def release(self, name: str = NAME, **more: Any) -> Release:
        """Release a run, as ``fedllm server release`` does."""
        return release_run(self.kit, name, **more)

    def site(self, name: str = "anne") -> Kit:
        """Return a site's kit."""
        return read_kit(self.kit_folder(name), "site")

    def train(self, name: str = "anne", run: str = RUN_ID, config: str | None = None) -> None:
        """Charge a round of a run to a site's ledger."""
        kit = self.site(name)
        state = kit.folder / "state"
        state.mkdir(exist_ok=True)
        ledger = Ledger.open(state / "ledger.sqlite", name, kit.identity)
        charge = Charge(
            run=run,
            round=1,
            account="",
            events=(Gaussian(noise_multiplier=5.0),),
            statement="ab" * 32,
            order_attempt=1,
            config=sha256_hex(self.terms if config is None else config),
        )
        ledger.reserve(charge, Ceiling(8.0, 1e-5))
        SiteMemory(state / "memory.json").remember(ledger.head())

    def fetch(self, name: str = "anne", wanted: str = NAME, out: Path | None = None) -> Fetched:
        """Fetch, as ``fedllm client models fetch`` does."""
        kit = self.site(name)
        offer = chosen(*offered_releases(kit), wanted)
        return fetch(kit, self.base, offer, out or self.folder / "models" / name)
