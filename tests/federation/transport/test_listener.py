"""How long a connection may be silent, without a clock: the loop's calls are written down."""

from __future__ import annotations

import pytest
from uvicorn.server import ServerState

from fedllm.errors import ConfigError
from fedllm.federation.transport.listener import Door, bind, server_of
from fedllm.federation.transport.superlink import _lifespan_config


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
