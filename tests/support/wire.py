"""A SuperLink and nodes over TLS on loopback, without models: for attacks on the wire itself."""

from __future__ import annotations

import base64
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from support.deployment import ENVIRONMENT, wait_until

from fedllm.federation.transport.listener import Listener
from fedllm.federation.transport.node import client_context, read_node_key
from fedllm.federation.transport.superlink import SuperLink
from fedllm.identity.kits import Kit, read_kit

_ECHO = """
import sys, threading
from pathlib import Path
from flwr.clientapp import ClientApp
from fedllm.federation.transport.node import PartyNode
from fedllm.federation.transport.flower import answer
app = ClientApp()
@app.query("echo")
def echo(message, context):
    return answer(message, lambda header, blobs: (header + "!", blobs))
@app.query("fail")
def fail(message, context):
    raise ValueError("patient 4711 has diabetes")
address, ca, key = sys.argv[1:]
say = lambda text: print(text, flush=True)
PartyNode(address, Path(ca), Path(key), app, say).serve(threading.Event())
"""


@contextmanager
def running_superlink(folder: Path, kits: Path, port: int = 0) -> Iterator[SuperLink]:
    """Serve with the coordinator's kit; the roster's nodes are registered."""
    kit = read_kit(kits / "coordinator", "coordinator")
    assert kit.server_certificate is not None
    assert kit.server_key is not None
    listener = Listener("127.0.0.1", port, kit.server_certificate, kit.server_key)
    link = SuperLink(folder / "superlink.sqlite", listener)
    link.register(kit.roster.node_keys)
    link.start()
    try:
        yield link
    finally:
        link.stop()


@contextmanager
def echo_node(kit: Kit, port: int, log: Path, **other: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a node that answers "echo" and fails at "fail", as a process of its own."""
    ca, key = other.get("ca", kit.ca_certificate), other.get("key", kit.node_key)
    command = [sys.executable, "-c", _ECHO, f"127.0.0.1:{port}", str(ca), str(key)]
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=ENVIRONMENT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def online(link: SuperLink, name: str) -> int | None:
    """Return a connected node's number."""
    return next((node.node_id for node in link.nodes() if node.name == name and node.online), None)


def wait_online(link: SuperLink, name: str) -> int:
    """Wait for a node."""
    return wait_until(lambda: online(link, name), 900.0, f"{name} connected")


def proof(key: ec.EllipticCurvePrivateKey, age_s: float = 0.0) -> dict[str, str]:
    """Return the headers with which a node proves its key."""
    moment = (datetime.now(UTC) - timedelta(seconds=age_s)).isoformat()
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    signature = key.sign(moment.encode(), ec.ECDSA(hashes.SHA256()))
    return {
        "flwr-public-key": base64.b64encode(public).decode(),
        "flwr-timestamp": moment,
        "flwr-signature": base64.b64encode(signature).decode(),
        "content-type": "application/protobuf",
        "accept": "application/protobuf",
    }


def client_of(kit: Kit, link: SuperLink) -> httpx.Client:
    """Return an HTTP client that trusts the federation's CA."""
    verify = client_context(kit.ca_certificate)
    return httpx.Client(base_url=f"https://127.0.0.1:{link.port}", verify=verify, timeout=300.0)


def node_key(kit: Kit) -> ec.EllipticCurvePrivateKey:
    """Return a kit's private node key."""
    assert kit.node_key is not None
    return read_node_key(kit.node_key)
