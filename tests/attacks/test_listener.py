"""Attacks on the coordinator's public listener, over TLS, by strangers and by registered nodes."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import socket
import ssl
import threading
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
)
from flwr.proto.node_pb2 import Node
from support.deployment import wait_until
from support.kits import make_federation
from support.wire import client_of, echo_node, node_key, proof, running_superlink, wait_online

from fedllm.errors import ConfigError
from fedllm.federation.transport.flower import exchange, from_content, to_content
from fedllm.federation.transport.listener import (
    MAX_ENVELOPE_BYTES,
    MAX_REQUEST_BYTES,
    PUBLIC_PATHS,
    Door,
)
from fedllm.federation.transport.node import MAX_REPLY_BYTES
from fedllm.federation.transport.superlink import SuperLink, grid_of
from fedllm.identity.kits import read_kit
from fedllm.identity.roster import ROSTER_PATH


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("listener")
    make_federation(folder / "operator")
    kits = folder / "operator" / "kits"
    with running_superlink(folder, kits) as link:
        anne, bob = read_kit(kits / "anne", "site"), read_kit(kits / "bob", "site")
        yield SimpleNamespace(folder=folder, kits=kits, link=link, anne=anne, bob=bob)


@pytest.fixture(scope="module")
def http(federation):
    with client_of(federation.anne, federation.link) as client:
        yield client


def activated(http, kit) -> int:
    key = node_key(kit)
    headers = proof(key)
    public = base64.b64decode(headers["flwr-public-key"])
    body = ActivateNodeRequest(public_key=public, heartbeat_interval=30.0).SerializeToString()
    reply = http.post("/v1/fleet/activate-node", headers=headers, content=body)
    assert reply.status_code == 200, reply.text
    return ActivateNodeResponse.FromString(reply.content).node_id


def all_paths(link: SuperLink) -> set[tuple[str, str]]:
    found = set()
    for route in link._app.routes:
        for inner in getattr(getattr(route, "original_router", None), "routes", [route]):
            path = getattr(inner, "path", "")
            found |= {(method, path) for method in getattr(inner, "methods", None) or {"GET"}}
    schema = link._app.openapi()["paths"]
    found |= {(method.upper(), path) for path, ways in schema.items() for method in ways}
    return found


def test_a_stranger_gets_nothing_from_any_path_of_the_whole_server(federation, http):
    paths = all_paths(federation.link)
    assert {path for _, path in paths} > PUBLIC_PATHS
    assert any(path.startswith("/v1/control/start-run") for _, path in paths)
    served = PUBLIC_PATHS | {ROSTER_PATH}
    more = {("POST", "/"), ("GET", "/v1/fleet/pull-messages"), ("POST", ROSTER_PATH)}
    for method, path in sorted(paths | more):
        reply = http.request(method, path, content=b"")
        expected = 401 if method == "POST" and path in served else 404
        assert (reply.status_code, reply.content) == (expected, b""), (method, path)


@pytest.mark.parametrize(
    "path",
    ["//v1/fleet/../control/start-run", "/v1/fleet/pull-messages/", "/v1/fleet%2Fget-fab", "*"],
)
def test_no_spelling_of_a_path_gets_around_the_door(federation, path):
    request = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n".encode()
    assert b" 404 " in raw_request(federation, request)


@contextlib.contextmanager
def connected(federation) -> Iterator[ssl.SSLSocket]:
    from fedllm.federation.transport.node import client_context

    context = client_context(federation.anne.ca_certificate)
    with (
        socket.create_connection(("127.0.0.1", federation.link.port), timeout=300) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
    ):
        yield secure


def raw_request(federation, request: bytes) -> bytes:
    with connected(federation) as secure:
        secure.sendall(request)
        return secure.recv(4096)


def test_an_unregistered_node_is_turned_away(http):
    stranger = ec.generate_private_key(ec.SECP384R1())
    for path in PUBLIC_PATHS | {ROSTER_PATH}:
        assert http.post(path, headers=proof(stranger), content=b"").status_code == 401


def test_a_proof_is_fresh_and_fits_its_key(federation, http):
    mine = node_key(federation.anne)
    stale = proof(mine, age_s=3600)
    other = {**proof(mine), "flwr-timestamp": datetime.now(UTC).isoformat()}
    forged = {**proof(ec.generate_private_key(ec.SECP384R1()))}
    forged["flwr-public-key"] = proof(mine)["flwr-public-key"]
    nonsense = {**proof(mine), "flwr-signature": "not base64 at all!"}
    future = proof(mine, age_s=-3600)
    for headers in (stale, other, forged, nonsense, future, {}):
        reply = http.post("/v1/fleet/pull-messages", headers=headers, content=b"")
        assert reply.status_code == 401


def test_a_node_cannot_take_or_answer_anothers_messages(federation, http):
    """Bob is registered and proves his own key; he asks for what was sent to Anne."""
    anne_id, _ = activated(http, federation.anne), activated(http, federation.bob)
    bob = node_key(federation.bob)
    for request in (
        PullMessagesRequest(node=Node(node_id=anne_id)),
        PushMessagesRequest(node=Node(node_id=anne_id)),
    ):
        name = "pull" if isinstance(request, PullMessagesRequest) else "push"
        reply = http.post(
            f"/v1/fleet/{name}-messages", headers=proof(bob), content=request.SerializeToString()
        )
        assert reply.status_code == 401, name
        assert b"Anne" not in reply.content


def test_a_body_that_is_too_large_is_not_even_read(federation, http):
    headers = proof(node_key(federation.anne))
    claim = str(MAX_REQUEST_BYTES + 1)
    lines = [f"{name}: {value}" for name, value in headers.items()]
    request = "\r\n".join(
        ["POST /v1/fleet/push-object HTTP/1.1", "host: x", f"content-length: {claim}", *lines]
    )
    assert b" 413 " in raw_request(federation, request.encode() + b"\r\n\r\n")
    chunked = http.post("/v1/fleet/push-object", headers=headers, content=iter([b"x"]))
    assert chunked.status_code == 413


def test_a_node_cannot_announce_more_than_a_few_gigabytes(federation, http):
    """What it may push follows from the list of objects in its message; lists are short."""
    headers = proof(node_key(federation.anne))
    long = bytes(MAX_ENVELOPE_BYTES + 1)
    for path in sorted(PUBLIC_PATHS - {"/v1/fleet/push-object"}):
        assert http.post(path, headers=headers, content=long).status_code == 413, path
    digits = f"content-length: {'9' * 5000}"
    request = f"POST /v1/fleet/push-object HTTP/1.1\r\nhost: x\r\n{digits}\r\n\r\n"
    assert raw_request(federation, request.encode()).split()[1] in (b"400", b"413")


def test_headers_without_end_are_not_kept(federation):
    """A stranger's request whose headers never stop, before anybody asked for a key."""
    sent, line = 0, b"x-filler: " + b"y" * 4000 + b"\r\n"
    with connected(federation) as stream, contextlib.suppress(OSError):
        stream.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: x\r\n")
        while sent < 64 << 20:
            stream.sendall(line)
            sent += len(line)
    assert sent < 64 << 20


def test_who_says_nothing_is_hung_up_on(federation, monkeypatch):
    monkeypatch.setattr(Door, "first_request_s", 0.2)
    for said in (b"", b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost:"):
        with connected(federation) as stream, contextlib.suppress(ConnectionError, ssl.SSLError):
            stream.sendall(said)
            assert stream.recv(4096) == b""


@pytest.mark.parametrize(
    "body", [b"\xff" * 100, b"\x0a\xff\xff\xff\xff\x0f", b"\x00"], ids=["noise", "cut off", "zero"]
)
def test_bodies_that_are_no_messages_harm_nobody(federation, http, body):
    headers = proof(node_key(federation.anne))
    for path in sorted(PUBLIC_PATHS):
        assert 400 <= http.post(path, headers=headers, content=body).status_code < 600
    assert federation.link.alive
    request = PullMessagesRequest(node=Node(node_id=activated(http, federation.anne)))
    good = http.post(
        "/v1/fleet/pull-messages",
        headers=proof(node_key(federation.anne)),
        content=request.SerializeToString(),
    )
    assert good.status_code == 200
    assert not PullMessagesResponse.FromString(good.content).messages_list


def test_nothing_but_tls_1_3_with_the_right_name_is_spoken(federation):
    port = federation.link.port
    with socket.create_connection(("127.0.0.1", port), timeout=300) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert not plain.recv(4096).startswith(b"HTTP")
    old = ssl.create_default_context(cafile=str(federation.anne.ca_certificate))
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(("127.0.0.1", port), timeout=300) as plain,
        pytest.raises(ssl.SSLError),
    ):
        old.wrap_socket(plain, server_hostname="127.0.0.1")


def test_the_private_listener_gives_nothing_without_a_runs_token(federation):
    with httpx.Client(base_url=f"http://{federation.link.private_address}") as client:
        for method, path in all_paths(federation.link):
            reply = client.request(method, path, content=b"")
            assert reply.status_code >= 400, (method, path)


def test_a_revoked_node_stays_out(federation, tmp_path):
    make_federation(tmp_path / "operator")
    kits = tmp_path / "operator" / "kits"
    anne = read_kit(kits / "anne", "site")
    with running_superlink(tmp_path, kits) as link, client_of(anne, link) as client:
        keys = dict(read_kit(kits / "coordinator", "coordinator").roster.node_keys)
        activated(client, anne)
        link.register({name: key for name, key in keys.items() if name != "anne"})
        reply = client.post("/v1/fleet/pull-messages", headers=proof(node_key(anne)), content=b"")
        assert reply.status_code == 401
        with pytest.raises(ConfigError, match="revoked"):
            link.register(keys)


def hears(federation, tmp_path, words: str, **other) -> str:
    """Run a node until its log says ``words``."""
    log = tmp_path / "node.log"
    with echo_node(federation.anne, federation.link.port, log, **other):
        wait_until(lambda: words in log.read_text(), 900.0, words)
    return log.read_text()


def test_a_node_does_not_speak_to_a_server_of_another_ca(federation, tmp_path):
    make_federation(tmp_path / "other")
    foreign = read_kit(tmp_path / "other" / "kits" / "anne", "site")
    text = hears(federation, tmp_path, "certificate is refused", ca=foreign.ca_certificate)
    assert "connected to" not in text


def test_a_node_does_not_speak_to_a_server_whose_certificate_expired(tmp_path):
    from fedllm.identity import certificates

    make_federation(tmp_path / "operator")
    kits = tmp_path / "operator" / "kits"
    anne = read_kit(kits / "anne", "site")
    key, now = certificates.new_tls_key(), datetime.now(UTC)
    ca = certificates.make_authority("north", key, now, 100)
    (tmp_path / "ca.pem").write_text(certificates.pem(ca))
    server = certificates.new_tls_key()
    old = certificates.make_server_certificate(
        "north", server.public_key(), ["127.0.0.1"], (ca, key), now - timedelta(days=9), 2
    )
    (tmp_path / "old.pem").write_text(certificates.pem(old))
    (tmp_path / "old.key").write_bytes(certificates.private_pem(server))
    with running_superlink(tmp_path, kits) as link:
        link._servers[0].config.ssl.load_cert_chain(tmp_path / "old.pem", tmp_path / "old.key")
        fake = SimpleNamespace(anne=anne, link=link)
        text = hears(fake, tmp_path, "certificate has expired", ca=tmp_path / "ca.pem")
    assert "connected to" not in text


def test_a_redirect_does_not_send_a_node_into_its_own_network(federation, tmp_path):
    asked = []

    class Inner:
        def __init__(self) -> None:
            self.socket = socket.create_server(("127.0.0.1", 0))
            self.port = self.socket.getsockname()[1]
            threading.Thread(target=self.listen, daemon=True).start()

        def listen(self) -> None:
            while True:
                try:
                    asked.append(self.socket.accept())
                except OSError:
                    return

    inner = Inner()
    config = federation.link._servers[0].config
    before = config.loaded_app

    async def redirect(scope, receive, send):
        where = f"http://127.0.0.1:{inner.port}/admin".encode()
        await send(
            {"type": "http.response.start", "status": 307, "headers": [(b"location", where)]}
        )
        await send({"type": "http.response.body", "body": b""})

    config.loaded_app = redirect
    try:
        hears(federation, tmp_path, "status 307")
    finally:
        config.loaded_app = before
        inner.socket.close()
    assert not asked


@pytest.mark.parametrize(
    "headers",
    [
        [(b"content-length", str(MAX_REPLY_BYTES + 1).encode())],
        [(b"content-encoding", b"gzip"), (b"content-length", b"20")],
        [],
    ],
    ids=["too long", "compressed", "without end"],
)
def test_a_coordinator_cannot_fill_a_nodes_memory(federation, tmp_path, headers):
    """Answers that are large, say nothing of their size, or would grow when unpacked."""
    config = federation.link._servers[0].config
    before = config.loaded_app

    async def flood(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x" * 20, "more_body": True})

    config.loaded_app = flood
    try:
        text = hears(federation, tmp_path, "the coordinator's answer")
    finally:
        config.loaded_app = before
    assert "Traceback" not in text


def test_an_old_key_keeps_one_party_out_and_no_other(tmp_path):
    """Anne enrolled again and kept the node key of her revoked kit."""
    make_federation(tmp_path / "operator")
    kits = tmp_path / "operator" / "kits"
    keys = dict(read_kit(kits / "coordinator", "coordinator").roster.node_keys)
    bob = read_kit(kits / "bob", "site")
    with running_superlink(tmp_path, kits) as link, client_of(bob, link) as client:
        link.register({name: key for name, key in keys.items() if name == "authority"})
        fresh = ec.generate_private_key(ec.SECP384R1())
        mine = base64.b64decode(proof(fresh)["flwr-public-key"])
        with pytest.raises(ConfigError, match="anne"):
            link.register({"anne": keys["anne"], "carl": mine})
        assert [state.name for state in link.nodes()] == ["carl"]
        reply = client.post(ROSTER_PATH, headers=proof(fresh), content=b"")
        assert reply.status_code == 200


@pytest.mark.slow
def test_a_node_answers_its_app_only_and_keeps_its_errors_to_itself(
    federation, tmp_path, monkeypatch
):
    """A run with an app bundle that holds code: it is never fetched, and nothing of it runs."""
    from flwr.supercore.fab import Fab

    marker = tmp_path / "owned"
    code = f"open({str(marker)!r}, 'w')".encode()
    link = federation.link
    bundle = bundle_with(code)
    digest = link._state.store_fab(Fab(hashlib.sha256(bundle).hexdigest(), bundle, {}))
    create = link._state.create_run
    monkeypatch.setattr(
        link._state,
        "create_run",
        lambda *rest: create("evil/app", "1.0.0", digest, *rest[3:]),
    )
    log = tmp_path / "node.log"
    with echo_node(federation.anne, link.port, log) as process:
        # Others have been here in her name: that she is online may be about them.
        wait_until(lambda: "connected to" in log.read_text(), 900.0, "connected")
        node = wait_online(link, "anne")
        with grid_of(link.open_run()) as grid:

            def ask(kind: str, content=None):
                contents = {node: content or to_content("hello", {"x": b"1"})}
                (reply,) = exchange(grid, kind, contents, 600.0)
                return reply

            fine = ask("query.echo")
            assert from_content(fine.content) == ("hello!", {"x": b"1"})
            for kind in ("train", "evaluate", "query.shell", "query.fail"):
                reply = ask(kind)
                assert reply.content is None
                assert reply.failure == "the node could not answer", kind
            large = to_content("big", {"x": bytes(6 << 20)})
            assert from_content(ask("query.echo", large).content)[1]["x"] == bytes(6 << 20)
            monkeypatch.setattr(link._state.object_store, "verify", False)
            broken_parts(link, node)
            assert ask("query.echo").failure == "", "hostile parts did not stop the node"
        assert process.poll() is None
    link.close_runs()
    assert not marker.exists()
    assert "diabetes" not in log.read_text()


def bundle_with(code: bytes) -> bytes:
    """Return an app bundle as `flwr build` makes them, whose ClientApp is ``code``."""
    settings = b"""[project]
name = "app"
version = "1.0.0"
[tool.flwr.app]
publisher = "evil"
[tool.flwr.app.components]
serverapp = "evil:app"
clientapp = "evil:app"
"""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("pyproject.toml", settings)
        archive.writestr("evil.py", code)
    return packed.getvalue()


def broken_parts(link: SuperLink, node: int) -> None:
    """Leave the node a message whose parts are not what their names say."""
    from flwr.app import Message
    from flwr.app.message import remove_content_from_message
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

    from fedllm.federation.transport.engines import task_identity

    run = link._state.get_run_info()[-1].run_id
    with task_identity(run, 1):
        message = Message(to_content("x", {"x": b"1"}), node, "query.echo", ttl=60.0)
        message.metadata.__dict__["_message_id"] = message.object_id
        session = link._state.start_session(run)
        stored, _ = link._state.store_message_and_object_tree(
            remove_content_from_message(message), get_object_tree(message), session
        )
        assert stored
        for name in get_all_nested_objects(message):
            link._state.object_store.put(name, b"garbage")
