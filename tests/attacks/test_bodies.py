"""Registered nodes that begin bodies and do not end them, on loopback and with little patience."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from support.wire import proof

from fedllm.federation.transport.bodies import Bodies, BodyError, Patience
from fedllm.federation.transport.listener import PUBLIC_PATHS, Door, bind, gate, server_of

PUSH = "/v1/fleet/push-object"
LONG_S = 600.0


@contextlib.contextmanager
def listening(patience: Patience) -> Iterator[tuple[int, list[bytes]]]:
    """Serve behind the public door, without TLS; yields the port and the bodies that got in."""
    served: list[bytes] = []

    async def app(scope, receive, send):
        event = await receive()
        served.append(event["body"])
        length = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": length})
        await send({"type": "http.response.body", "body": b"ok"})

    server = server_of(gate(app, PUBLIC_PATHS, lambda key: True, None, patience))
    where = bind("127.0.0.1", 0)
    where.listen()
    thread = threading.Thread(target=server.run, args=([where],), daemon=True)
    thread.start()
    try:
        yield where.getsockname()[1], served
    finally:
        server.should_exit = server.force_exit = True
        thread.join(timeout=60)
        where.close()


def begun(port: int, length: int, body: bytes, key=None) -> socket.socket:
    """Begin a request of a registered node: its headers and some of its body."""
    stream = socket.create_connection(("127.0.0.1", port), timeout=300)
    stream.sendall(head(length, key) + body)
    return stream


def head(length: int, key=None) -> bytes:
    headers = {"host": "x", "content-length": str(length)}
    headers |= proof(key or ec.generate_private_key(ec.SECP384R1()))
    lines = [f"POST {PUSH} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def to_the_end(stream: socket.socket) -> bytes:
    """Return all that the other side says before it hangs up."""
    said = b""
    with contextlib.suppress(ConnectionError):
        while part := stream.recv(4096):
            said += part
    return said


def test_a_body_that_stops_half_way_is_given_up():
    with listening(Patience(silence_s=0.2, bytes_per_s=1.0)) as (port, served):
        with begun(port, 1000, b"x" * 500) as stream:
            assert b" 408 " in to_the_end(stream)
        assert served == []


def test_a_body_that_trickles_is_given_up_in_the_time_of_its_length():
    """Never silent for long enough, and never at the rate that is asked for."""
    patience = Patience(silence_s=1.0, bytes_per_s=1e6)
    with listening(patience) as (port, served), begun(port, 60000, b"x") as stream:
        stream.settimeout(0.05)
        said = b""
        for _ in range(10_000):
            with contextlib.suppress(TimeoutError):
                said = stream.recv(4096)
                break
            with contextlib.suppress(ConnectionError):
                stream.sendall(b"x")
        assert b" 408 " in said
        assert served == []


def answered(streams, count):
    """Wait until so many connections have an answer, and return those that do."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        ready, _, _ = select.select(streams, [], [], 1.0)
        if len(ready) >= count:
            return ready
    raise AssertionError("fewer connections were answered")


def test_one_node_has_only_so_many_unfinished_bodies_and_no_other_suffers():
    mine, other = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    patience = Patience(silence_s=LONG_S, at_once=3)
    with listening(patience) as (port, served), contextlib.ExitStack() as stack:
        streams = [stack.enter_context(begun(port, 10, b"x", mine)) for _ in range(5)]
        # Which three are held is the server's to say: the other two are answered.
        refused = answered(streams, 2)
        assert all(b" 429 " in to_the_end(stream) for stream in refused)
        with begun(port, 2, b"ab", other) as stream:
            assert b" 200 " in stream.recv(4096)
        held = [stream for stream in streams if stream not in refused]
        for stream in held:
            stream.sendall(b"y" * 9)
        assert all(b" 200 " in stream.recv(4096) for stream in held)
        with begun(port, 2, b"cd", mine) as stream:
            assert b" 200 " in stream.recv(4096), "what is finished or gone counts no more"
    assert sorted(served) == [b"ab", b"cd", *[b"x" + b"y" * 9] * 3]


def test_a_sender_who_leaves_counts_no_more():
    mine = ec.generate_private_key(ec.SECP384R1())
    with listening(Patience(silence_s=LONG_S, at_once=1)) as (port, served):
        begun(port, 10, b"x", mine).close()
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            with begun(port, 2, b"ab", mine) as stream:
                if b" 200 " in stream.recv(4096):
                    break
    assert served == [b"ab"]


def test_a_whole_body_goes_through_in_parts_and_the_connection_stays():
    mine = ec.generate_private_key(ec.SECP384R1())
    with listening(Patience()) as (port, served), begun(port, 6, b"ab", mine) as stream:
        stream.sendall(b"cd")
        stream.sendall(b"ef")
        assert b" 200 " in stream.recv(4096)
        stream.sendall(head(2, mine) + b"gh")
        assert b" 200 " in stream.recv(4096)
    assert served == [b"abcdef", b"gh"]


def test_a_body_of_two_lengths_is_refused_before_it_is_read():
    """A door that goes by the one and a program that goes by the other let in what they please."""
    mine = ec.generate_private_key(ec.SECP384R1())
    with listening(Patience(silence_s=LONG_S)) as (port, served):
        both = head(10, mine).replace(b"\r\n\r\n", b"\r\ntransfer-encoding: chunked\r\n\r\n")
        with socket.create_connection(("127.0.0.1", port), timeout=300) as stream:
            stream.sendall(both + b"64\r\n" + b"a" * 100 + b"\r\n")
            assert b" 400 " in to_the_end(stream)
    assert served == []


@pytest.mark.parametrize("sent", [[b"x" * 6, b"x" * 5], [b"x" * 9], [b"x" * 11]])
def test_a_body_has_the_length_that_was_announced(sent):
    events = iter(
        {"type": "http.request", "body": part, "more_body": number < len(sent)}
        for number, part in enumerate(sent, start=1)
    )

    async def receive():
        return next(events)

    with pytest.raises(BodyError) as caught:
        asyncio.run(Bodies(Patience()).read(b"key", 10, receive))
    assert caught.value.status == 400


def test_a_body_that_does_not_end_is_not_kept():
    taken = 0

    async def receive():
        nonlocal taken
        taken += 1
        assert taken < 3
        return {"type": "http.request", "body": b"x" * 10, "more_body": True}

    with pytest.raises(BodyError):
        asyncio.run(Bodies(Patience()).read(b"key", 10, receive))


def test_the_headers_of_a_later_request_must_come_in_time_too(monkeypatch):
    monkeypatch.setattr(Door, "first_request_s", 0.3)
    with listening(Patience()) as (port, _), begun(port, 2, b"ab") as stream:
        assert b" 200 " in stream.recv(4096)
        stream.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost:")
        assert to_the_end(stream) == b""


@pytest.mark.parametrize("patience", [Patience()])
def test_what_a_listener_waits_for_by_default(patience):
    assert (patience.silence_s, patience.bytes_per_s, patience.at_once) == (20.0, 8192.0, 16)
