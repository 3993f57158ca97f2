"""How long a connection may be silent, without a clock: the loop's calls are written down."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from uvicorn.server import ServerState

from fedllm.errors import ConfigError
from fedllm.federation.transport import listener
from fedllm.federation.transport.listener import (
    MAX_ENVELOPE_BYTES,
    MAX_REQUEST_BYTES,
    Door,
    bind,
    gate,
    server_of,
    with_roster,
)
from fedllm.federation.transport.superlink import _lifespan_config
from fedllm.identity.roster import ROSTER_PATH


class Handle:
    def __init__(self, delay: float, call) -> None:
        self.delay, self.call, self.cancelled = delay, call, False

    def cancel(self) -> None:
        self.cancelled = True


class Task:
    def add_done_callback(self, call) -> None: ...


class Loop:
    """Writes down what is to be called later, and never runs a request."""

    def __init__(self) -> None:
        self.handles: list[Handle] = []

    def call_later(self, delay: float, call, *rest) -> Handle:
        self.handles.append(Handle(delay, call))
        return self.handles[-1]

    def create_task(self, coroutine, **_):
        coroutine.close()
        return Task()

    @property
    def waiting(self) -> list[Handle]:
        return [h for h in self.handles if not h.cancelled and "silent" in h.call.__name__]


class Transport:
    def __init__(self) -> None:
        self.aborted = self.closed = False

    def get_extra_info(self, name: str):
        return None

    def is_closing(self) -> bool:
        return self.closed or self.aborted

    def abort(self) -> None:
        self.aborted = True

    def close(self) -> None:
        self.closed = True

    def write(self, data: bytes) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


@pytest.fixture
def door():
    async def app(scope, receive, send) -> None: ...

    config = server_of(app).config
    loop, transport = Loop(), Transport()
    made = Door(config, ServerState(), {}, loop)
    made.connection_made(transport)
    return made, loop, transport


HEAD = b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n"


def test_who_connects_has_twenty_seconds_for_the_headers(door):
    _, loop, transport = door
    (handle,) = loop.waiting
    assert handle.delay == 20.0
    handle.call()
    assert transport.aborted


def test_part_of_the_headers_is_not_enough(door):
    made, loop, transport = door
    made.data_received(HEAD)
    (handle,) = loop.waiting
    handle.call()
    assert transport.aborted


def test_who_has_sent_the_headers_is_not_hung_up_on_while_it_is_answered(door):
    made, loop, transport = door
    made.data_received(HEAD + b"\r\n")
    assert loop.waiting == []
    made.data_received(b"abc")
    assert loop.waiting == []
    assert not transport.aborted


def test_a_later_request_must_get_on_as_the_first_one(door):
    made, loop, transport = door
    made.data_received(HEAD + b"\r\nabc")
    made.cycle.response_complete = True
    made.data_received(b"POST")
    (handle,) = loop.waiting
    made.data_received(b"POST")
    assert loop.waiting == [handle], "and no second watch is set"
    handle.call()
    assert transport.aborted


def test_a_connection_that_is_closing_is_left_to_close(door):
    _, loop, transport = door
    (handle,) = loop.waiting
    transport.closed = True
    handle.call()
    assert not transport.aborted


def test_an_address_that_is_taken_is_named():
    first = bind("127.0.0.1", 0)
    try:
        port = first.getsockname()[1]
        first.listen()
        with pytest.raises(ConfigError, match=f"cannot listen on .*:{port}"):
            bind("127.0.0.1", port)
        with pytest.raises(ConfigError, match=r"cannot listen on .*:70000"):
            bind("127.0.0.1", 70000)
    finally:
        first.close()


def test_flowers_own_listeners_stay_closed(tmp_path):
    """What Flower would open or run by itself; its state alone is used."""
    config = _lifespan_config(tmp_path / "x.sqlite")
    assert config.insecure
    assert config.enable_supernode_auth
    assert config.host == "127.0.0.1"
    assert not (config.simulation or config.enable_event_log or config.runtime_dependency_install)
    assert config.health_server_address is None
    assert config.fleet_api_address is None
    assert len(config.superexec_auth_secret) == 32


# --- the door, asked as uvicorn asks it -------------------------------------------------------


def ask(app, **scope) -> list[dict]:
    """Return the events that an ASGI app sends for one request without a body."""
    sent: list[dict] = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(event):
        sent.append(event)

    asyncio.run(app({"type": "http", "method": "POST", "headers": [], **scope}, receive, send))
    return sent


async def inner(scope, receive, send) -> None:
    await send({"inner": scope["path"], "body": (await receive())["body"]})


def test_the_roster_has_a_path_of_its_own_and_all_else_goes_on():
    app = with_roster(inner, lambda: b"a roster")
    assert ask(app, path="/other") == [{"inner": "/other", "body": b""}]
    start, body = ask(app, path=ROSTER_PATH)
    headers = [(b"content-length", b"8"), (b"connection", b"close")]
    assert start == {"type": "http.response.start", "status": 200, "headers": headers}
    assert body == {"type": "http.response.body", "body": b"a roster"}


def served(status: int) -> list[dict]:
    headers = [(b"connection", b"close"), (b"content-length", b"0")]
    return [
        {"type": "http.response.start", "status": status, "headers": headers},
        {"type": "http.response.body", "body": b""},
    ]


def sized(length: str, *more: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    return [(b"Content-Length", length.encode()), *more]


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/in", sized("0"), None),
        ("/in", sized(str(MAX_REQUEST_BYTES)), 400),  # let in, and no such body comes
        ("/in", sized(str(MAX_REQUEST_BYTES + 1)), 413),
        ("/in", sized("0" * 12), None),
        ("/in", sized("0" * 13), 413),
        ("/in", sized("-1"), 413),
        ("/in", [], 413),
        ("/in", sized("0", (b"transfer-encoding", b"chunked")), 400),
        ("/out", sized("0"), 404),
    ],
)
def test_what_the_private_door_lets_in(path, headers, status):
    door = gate(inner, frozenset({"/in"}), None, None)
    found = ask(door, path=path, headers=headers)
    assert found == (served(status) if status else [{"inner": path, "body": b""}])
    assert ask(door, path="/in", headers=sized("0"), method="GET") == served(404)
    assert ask(door, type="lifespan", path="/in") == []


@pytest.mark.parametrize(
    ("path", "length", "status"),
    [
        ("/a/push-object", MAX_ENVELOPE_BYTES + 1, 401),
        ("/a/push-object", MAX_REQUEST_BYTES + 1, 413),
        ("/a/pull", MAX_ENVELOPE_BYTES, 401),
        ("/a/pull", MAX_ENVELOPE_BYTES + 1, 413),
    ],
)
def test_a_strangers_key_counts_for_nothing_and_sizes_come_before_it(path, length, status):
    asked: list[bytes] = []
    paths = frozenset({"/a/push-object", "/a/pull"})
    door = gate(inner, paths, lambda key: bool(asked.append(key)), None)
    headers = sized(str(length), (b"flwr-public-key", b64encode(b"a key")))
    assert ask(door, path=path, headers=headers) == served(status)
    assert asked == ([b"a key"] if status == 401 else [])


def proven(age_s: float, key=None, change: bytes = b"") -> tuple[bytes, dict[bytes, bytes]]:
    key = key or ec.generate_private_key(ec.SECP384R1())
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    moment = (NOW - timedelta(seconds=age_s)).isoformat().encode()
    signature = key.sign(moment + change, ec.ECDSA(hashes.SHA256()))
    headers = {b"flwr-public-key": b64encode(public), b"flwr-timestamp": moment}
    return public, headers | {b"flwr-signature": b64encode(signature)}


NOW = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("age_s", "fits"), [(0, True), (60, True), (-60, True), (60.001, False), (-60.001, False)]
)
def test_a_proof_counts_for_a_minute_either_way(monkeypatch, age_s, fits):
    class Clock(datetime):
        @classmethod
        def now(cls, zone=None):
            return NOW

    monkeypatch.setattr(listener, "datetime", SimpleNamespace(datetime=Clock, UTC=UTC))
    public, headers = proven(age_s)
    assert listener._proven_key(headers, lambda key: True) == (public if fits else None)
    assert listener._proven_key(headers, lambda key: False) is None
    _, forged = proven(age_s, change=b"x")
    assert listener._proven_key(forged, lambda key: True) is None
    for name in headers:
        left = {key: value for key, value in headers.items() if key != name}
        assert listener._proven_key(left, lambda key: True) is None


def test_a_known_node_comes_in_and_only_its_activation_turns_the_one_before_out(monkeypatch):
    class Clock(datetime):
        @classmethod
        def now(cls, zone=None):
            return NOW

    monkeypatch.setattr(listener, "datetime", SimpleNamespace(datetime=Clock, UTC=UTC))
    public, headers = proven(0)
    turned: list[bytes] = []
    paths = frozenset({"/v1/fleet/activate-node", "/v1/fleet/pull"})
    door = gate(inner, paths, lambda key: key == public, turned.append)
    sent = [*sized("0"), *headers.items()]
    assert ask(door, path="/v1/fleet/pull", headers=sent) == [
        {"inner": "/v1/fleet/pull", "body": b""}
    ]
    assert turned == []
    path = "/v1/fleet/activate-node"
    assert ask(door, path=path, headers=sent) == [{"inner": path, "body": b""}]
    assert turned == [public]
    quiet = gate(inner, paths, lambda key: key == public, None)
    assert ask(quiet, path=path, headers=sent) == [{"inner": path, "body": b""}]
