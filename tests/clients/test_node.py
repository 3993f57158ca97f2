"""How a new roster reaches a site whose kit lies elsewhere than the operator's folder."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.deployment import Deployment, wait_until
from support.kits import make_federation
from support.ports import free_port

from fedllm.errors import FedllmError, PeerError
from fedllm.federation.transport.listener import Listener
from fedllm.federation.transport.superlink import SuperLink
from fedllm.identity import kits
from fedllm.identity.kits import read_kit
from fedllm.identity.provisioning import revoke
from fedllm_client import node
from fedllm_client.connection import fetch_roster, reach_coordinator
from fedllm_client.node import take_roster


@pytest.fixture
def place(tmp_path: Path) -> Iterator[SimpleNamespace]:
    """A SuperLink with a coordinator's kit, and a site's kit that left the operator's machine."""
    folder, port = tmp_path / "operator", free_port()

    def provision(*sites: str) -> None:
        coordinator = {"hosts": ["127.0.0.1"], "port": port}
        make_federation(folder, sites=list(sites), coordinator=coordinator)

    provision("anne", "bob")
    site = Path(shutil.move(folder / "kits" / "anne", tmp_path / "anne"))
    kit = read_kit(folder / "kits" / "coordinator", "coordinator")
    listener = Listener("127.0.0.1", port, kit.server_certificate, kit.server_key)
    link = SuperLink(tmp_path / "superlink.sqlite", listener)

    def follow(text: str | None = None) -> None:
        found = read_kit(kit.folder, "coordinator")
        link.register(
            found.roster.node_keys, text or (folder / "roster.json").read_text(encoding="utf-8")
        )

    follow()
    link.start()
    yield SimpleNamespace(
        folder=folder, site=lambda: read_kit(site, "site"), follow=follow, provision=provision
    )
    link.stop()


def test_a_new_roster_reaches_the_site(place):
    assert reach_coordinator(place.site()).knows_this_node
    assert not take_roster(place.site())
    place.provision("anne", "bob", "carl")
    place.follow()
    assert take_roster(place.site())
    assert set(place.site().roster.sites) == {"anne", "bob", "carl"}
    assert not take_roster(place.site())


def test_an_older_or_forged_roster_changes_nothing(place, tmp_path):
    old = (place.folder / "roster.json").read_text()
    revoke(place.folder, "bob")
    place.follow()
    assert take_roster(place.site())
    place.follow(old)
    assert not take_roster(place.site())
    make_federation(tmp_path / "evil", name="north")
    place.follow((tmp_path / "evil" / "roster.json").read_text())
    with pytest.raises(PeerError, match="signature"):
        take_roster(place.site())
    place.follow("{}")
    with pytest.raises(PeerError, match="damaged"):
        take_roster(place.site())
    assert set(place.site().roster.sites) == {"anne"}


def test_a_revoked_site_gets_none(place):
    kit = place.site()
    revoke(place.folder, "anne")
    place.follow()
    with pytest.raises(FedllmError, match="401"):
        fetch_roster(kit)
    assert not reach_coordinator(kit).knows_this_node


def test_a_running_party_stops_when_its_roster_expires(place, monkeypatch):
    """A coordinator that holds a revocation back; nothing is asked of it, and nothing restarts."""
    kit, stop, said = place.site(), threading.Event(), []
    monkeypatch.setattr(node, "_WATCH_S", 0.01)
    monkeypatch.setattr(node, "say", said.append)
    later = datetime.now(UTC) + timedelta(days=398)
    monkeypatch.setattr(kits, "current_time", lambda: later)
    watch = threading.Thread(target=node._watch, args=(kit, stop), daemon=True)
    watch.start()
    assert stop.wait(timeout=300)
    watch.join()
    assert any("expired" in words for words in said)


def test_a_roster_that_cannot_be_written_is_complained_about(place, monkeypatch):
    """A full disk must not hide that a revocation was not taken in."""
    kit, stop, said = place.site(), threading.Event(), []
    revoke(place.folder, "bob")
    place.follow()

    def full(path, content, mode=0o644):
        raise FedllmError(f"could not write {path}: No space left on device", "free disk space")

    def say(text):
        said.append(text)
        stop.set()

    monkeypatch.setattr(kits, "write_bytes", full)
    monkeypatch.setattr(node, "say", say)
    keeper = threading.Thread(target=node._keep_roster, args=(kit, stop), daemon=True)
    keeper.start()
    assert stop.wait(timeout=300)
    keeper.join()
    assert "No space left" in said[0]


class Elsewhere(Deployment):
    """A deployment whose first site has its kit on a machine of its own."""

    def kit(self, name: str) -> Path:
        return self.folder / name if name == "site-00" else super().kit(name)


@pytest.mark.slow
def test_a_running_site_starts_anew_with_the_new_roster(tmp_path, tiny_checkpoint):
    deployment = Elsewhere(tmp_path, tiny_checkpoint("bert"))
    kit = deployment.kit("site-00")
    shutil.move(tmp_path / "operator" / "kits" / "site-00", kit)
    try:
        deployment.start("coordinator", "site-00")
        deployment.wait_connected("site-00")
        revoke(tmp_path / "operator", "site-02")
        wait_until(lambda: "starting again with it" in deployment.log("site-00"))
        assert read_kit(kit, "site").roster.version == 2
        wait_until(lambda: deployment.log("site-00").count("connected to") == 2)
    finally:
        deployment.close()
