"""A node's side: it goes on after every failure, says each once, and stops when told to."""

from __future__ import annotations

import contextlib
import ssl
import threading
from types import SimpleNamespace

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.clientapp import ClientApp
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from support.deployment import wait_until
from support.kits import make_federation
from support.ports import free_port
from support.wire import running_superlink, wait_online

from fedllm.errors import ConfigError, PeerError
from fedllm.federation.transport import node as module
from fedllm.federation.transport.engines import task_identity
from fedllm.federation.transport.flower import answer, exchange, from_content, to_content
from fedllm.federation.transport.node import (
    MAX_REPLY_BYTES,
    PartyNode,
    _Link,
    _reason,
    bounded,
    client_context,
    read_node_key,
)
from fedllm.federation.transport.superlink import grid_of
from fedllm.identity.kits import read_kit


class Stop:
    """An event that is set after so many waits, which are written down and take no time."""

    def __init__(self, waits: int) -> None:
        self.left, self.waits = waits, []

    def is_set(self) -> bool:
        return self.left <= 0

    def wait(self, seconds: float) -> bool:
        self.left -= 1
        self.waits.append(seconds)
        return self.is_set()


def app_of() -> ClientApp:
    app = ClientApp()

    @app.query("echo")
    def echo(message: Message, context) -> Message:
        return answer(message, lambda header, blobs: (f"{header}!", blobs))

    @app.query("fail")
    def fail(message: Message, context) -> Message:
        raise PeerError("for this machine's log")

    return app


@pytest.fixture
def kits(tmp_path):
    make_federation(tmp_path / "operator")
    return tmp_path / "operator" / "kits"


def party(kit, port: int, said: list[str], app: ClientApp | None = None, **more) -> PartyNode:
    address = f"127.0.0.1:{port}"
    return PartyNode(
        address, kit.ca_certificate, kit.node_key, app or app_of(), said.append, **more
    )


def test_a_node_answers_survives_what_fails_and_leaves_when_told(kits, tmp_path, monkeypatch):
    said: list[str] = []
    stop = threading.Event()
    pushed: list[dict[str, object]] = []
    request = module.PushMessagesRequest
    monkeypatch.setattr(
        module, "PushMessagesRequest", lambda **parts: pushed.append(parts) or request(**parts)
    )
    with running_superlink(tmp_path, kits) as link:
        serving = party(read_kit(kits / "anne", "site"), link.port, said)
        thread = threading.Thread(target=serving.serve, args=(stop,), daemon=True)
        thread.start()
        number = wait_online(link, "anne")
        wait_until(lambda: said)
        assert said == [f"connected to 127.0.0.1:{link.port}"]
        with grid_of(link.open_run()) as grid:

            def ask(kind: str):
                contents = {number: to_content("hello", {"x": b"1"})}
                (reply,) = exchange(grid, kind, contents, 600.0)
                return reply

            assert from_content(ask("query.echo").content) == ("hello!", {"x": b"1"})
            failed = ask("query.fail")
            assert (failed.content, failed.failure) == (None, "the node could not answer")
            assert said[1:] == [
                "a message of kind 'query.fail' failed: PeerError",
                "for this machine's log",
            ]
            assert from_content(ask("query.echo").content)[0] == "hello!"
        # How long an answer took to compute, which follows records, is not said.
        assert [parts["clientapp_runtime_list"] for parts in pushed] == [[0.0]] * 3
        stop.set()
        thread.join(timeout=300)
        assert not thread.is_alive()
        wait_until(lambda: [n.online for n in link.nodes() if n.name == "anne"] == [False])


def test_who_is_not_there_is_tried_again_ever_less_often_and_complained_of_once(kits):
    said: list[str] = []
    port, stop = free_port(), Stop(8)
    party(read_kit(kits / "anne", "site"), port, said).serve(stop)
    assert stop.waits == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    (words,) = said
    assert words.startswith(f"no connection to 127.0.0.1:{port}: ConnectError")
    assert words.endswith("; trying again for ever")


def test_a_connection_that_was_there_and_is_lost_is_tried_again_at_once_and_told_again(
    kits, monkeypatch
):
    """As after the start: what was tried before it came about says nothing of what is next."""
    said: list[str] = []
    tries = iter([False, False, False, True, False, True, True, False])

    @contextlib.contextmanager
    def link(self, stop):
        if not next(tries):
            raise httpx.ConnectError("refused")
        yield SimpleNamespace(work=lost)

    def lost():
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(PartyNode, "_link", link)
    stop, linked = Stop(8), list[bool]()
    party(read_kit(kits / "anne", "site"), 9, said, linked=linked.append).serve(stop)
    assert stop.waits == [1.0, 2.0, 4.0, 1.0, 2.0, 1.0, 1.0, 2.0]
    came, gone = "connected to 127.0.0.1:9", "no connection to 127.0.0.1:9: "
    kinds = [came if words == came else words[: len(gone)] for words in said]
    assert kinds == [gone, came, gone, came, gone, came, gone]
    some = [True, False]
    assert linked == [*[False] * 3, *some, False, *some, *some, False]


def test_who_was_told_to_stop_does_not_even_connect(kits):
    said: list[str] = []
    party(read_kit(kits / "anne", "site"), free_port(), said).serve(Stop(0))
    assert said == []


def test_the_coordinator_may_know_the_node_no_more(kits, tmp_path):
    said: list[str] = []
    with running_superlink(tmp_path, kits) as link:
        link.register({})
        party(read_kit(kits / "anne", "site"), link.port, said).serve(Stop(2))
    assert len(said) == 1
    assert "it does not know this node's key (not in its roster, or revoked)" in said[0]


# --- one connection -------------------------------------------------------------------------


class Parts:
    """A message's parts as a coordinator gives them; ``change`` may put others in their place."""

    def __init__(self, message: Message) -> None:
        message.metadata.__dict__["_message_id"] = message.object_id
        self.tree = get_object_tree(message)
        self.contents = {
            name: part.deflate() for name, part in get_all_nested_objects(message).items()
        }
        self.envelope = remove_content_from_message(message)
        self.confirmed: list[str] = []

    def use(self, monkeypatch) -> Parts:
        monkeypatch.setattr(
            module, "make_pull_object_fn_protobuf", lambda *_: self.contents.__getitem__
        )
        monkeypatch.setattr(
            module,
            "make_confirm_message_received_fn_protobuf",
            lambda *_: self.confirmed.append,
        )
        return self


def message_to(number: int) -> Parts:
    with task_identity(1, 1):
        return Parts(Message(to_content("hello", {"x": b"123"}), number, "query.echo", ttl=60.0))


def link_of(number: int, said: list[str], stop=None, client=None) -> _Link:
    client = client or SimpleNamespace(PullObject=None, ConfirmMessageReceived=None)
    return _Link(client, number, app_of(), said.append, stop or Stop(9))


def test_a_message_is_put_together_and_confirmed(monkeypatch):
    parts = message_to(7).use(monkeypatch)
    found = link_of(7, [])._fetch(parts.envelope, parts.tree)
    assert from_content(found.content) == ("hello", {"x": b"123"})
    assert parts.confirmed == [parts.envelope.metadata.message_id]


def test_a_message_for_another_node_is_neither_answered_nor_confirmed(monkeypatch):
    said: list[str] = []
    parts = message_to(8).use(monkeypatch)
    link = link_of(7, said)
    with pytest.raises(PeerError, match="a message is not for this node"):
        link._fetch(parts.envelope, parts.tree)
    link._handle(parts.envelope, parts.tree)
    assert said == ["a message of kind 'query.echo' could not be fetched (PeerError)"]
    assert parts.confirmed == []


def test_parts_of_another_message_are_refused(monkeypatch):
    parts, other = message_to(7).use(monkeypatch), message_to(8)
    with pytest.raises(PeerError, match="do not belong together"):
        link_of(7, [])._fetch(parts.envelope, other.tree)


def test_a_message_may_be_as_large_as_is_allowed_and_no_larger(monkeypatch):
    parts = message_to(7).use(monkeypatch)
    size = sum(map(len, parts.contents.values()))
    monkeypatch.setattr(module, "MAX_MESSAGE_BYTES", size)
    assert link_of(7, [])._fetch(parts.envelope, parts.tree).has_content()
    monkeypatch.setattr(module, "MAX_MESSAGE_BYTES", size - 1)
    with pytest.raises(PeerError, match="a message is larger than"):
        link_of(7, [])._fetch(parts.envelope, parts.tree)


def test_a_lost_connection_ends_the_link_and_not_the_message(monkeypatch):
    parts = message_to(7).use(monkeypatch)

    def lost(name):
        raise httpx.ConnectError("gone")

    monkeypatch.setattr(module, "make_pull_object_fn_protobuf", lambda *_: lost)
    with pytest.raises(httpx.ConnectError):
        link_of(7, [])._handle(parts.envelope, parts.tree)


def test_an_answer_that_nobody_takes_is_told_and_no_fault_of_the_connection(monkeypatch):
    said: list[str] = []
    parts, link = message_to(7).use(monkeypatch), link_of(7, said)
    sent = []

    def refuse(reply):
        sent.append((reply.metadata.src_node_id, reply.metadata.dst_node_id))
        raise module.ObjectPushError("the run has ended", run_id=1, session_id="s")

    monkeypatch.setattr(link, "_send", refuse)
    link._handle(parts.envelope, parts.tree)
    assert sent == [(7, 1)]
    (words,) = said
    assert words.startswith("the answer to 'query.echo' was not taken (ObjectPushError")


def test_a_request_is_repeated_until_it_gets_through_or_the_node_stops():
    stop, calls = Stop(9), []

    def third_time():
        calls.append(1)
        if len(calls) < 3:
            raise httpx.ReadTimeout("late")
        return "answer"

    assert link_of(7, [], stop)._insist(third_time) == "answer"
    assert stop.waits == [0.5, 1.0]
    stop = Stop(8)
    with pytest.raises(httpx.ConnectError):
        link_of(7, [], stop)._insist(lambda: (_ for _ in ()).throw(httpx.ConnectError("gone")))
    assert stop.waits == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_a_node_that_has_nothing_to_do_asks_less_often(monkeypatch):
    clock = iter([0.0, 0.0, 5.0, 100.0])
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    nothing = SimpleNamespace(messages_list=[], message_object_trees=[])
    asked = []
    client = SimpleNamespace(PullMessages=lambda request: asked.append(request) or nothing)
    stop = Stop(3)
    link_of(7, [], stop, client).work()
    assert [request.node.node_id for request in asked] == [7, 7, 7]
    assert stop.waits == [0.2, 0.5, 2.0]


def test_the_heart_beats_on_whatever_comes_back_until_the_link_is_gone(monkeypatch):
    beats = []

    def fail(request):
        beats.append((request.node.node_id, request.heartbeat_interval))
        raise ValueError("nonsense came back")

    link = link_of(7, [], client=SimpleNamespace(SendNodeHeartbeat=fail))
    link.gone = Stop(4)
    link.heartbeats()
    assert beats == [(7, 15.0)] * 3
    assert link.gone.waits == [5.0] * 4, "three in the time after which a node counts as gone"


# --- what comes back, and what a kit holds --------------------------------------------------


def response(status: int = 200, **headers: str) -> httpx.Response:
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return httpx.Response(status, headers=named, request=httpx.Request("POST", "https://x"))


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"content_length": str(MAX_REPLY_BYTES)}, None),
        ({"content_length": str(MAX_REPLY_BYTES), "content_encoding": "identity"}, None),
        ({"content_length": "0" * 12}, None),
        ({"content_length": "0" * 13}, "does not say how long"),
        ({"content_length": str(MAX_REPLY_BYTES + 1)}, "larger than 16 MiB"),
        ({"content_length": "9", "content_encoding": "gzip"}, "larger than 16 MiB"),
        ({"content_length": "-1"}, "does not say how long"),
        ({"content_length": "\u00b2"}, "does not say how long"),
        ({"content_length": ""}, "does not say how long"),
        ({}, "does not say how long"),
    ],
)
def test_an_answer_says_how_long_it_is_before_it_is_read(headers, words):
    if words is None:
        bounded(response(**headers))
        return
    with pytest.raises(PeerError, match=words):
        bounded(response(**headers))


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "it does not know this node's key (not in its roster, or revoked), or the clocks"),
        (500, "it answered with status 500"),
    ],
)
def test_a_refused_request_is_told_in_words(status, words):
    with pytest.raises(httpx.HTTPStatusError) as refused:
        bounded(response(status, content_length="9"))
    assert _reason(refused.value).startswith(words)


def test_other_failures_are_told_in_words():
    assert _reason(PeerError("a message", "a remedy")) == "a message"
    assert _reason(httpx.ReadTimeout("")) == "ReadTimeout"
    failed = httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] it failed: certificate expired")
    assert _reason(failed) == "its certificate is refused (certificate expired)"


def test_a_kits_files_are_of_the_right_kind(tmp_path):
    path = tmp_path / "node.key"
    with pytest.raises(ConfigError, match="cannot be read"):
        read_node_key(path)
    coding = (serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH)
    plain = serialization.NoEncryption()
    path.write_bytes(ed25519.Ed25519PrivateKey.generate().private_bytes(*coding, plain))
    with pytest.raises(ConfigError, match="does not hold an ECDSA key"):
        read_node_key(path)
    key = ec.generate_private_key(ec.SECP384R1())
    path.write_bytes(key.private_bytes(*coding, plain))
    assert read_node_key(path).private_numbers() == key.private_numbers()
    for content in (None, "no certificate"):
        ca = tmp_path / "ca.pem"
        if content is not None:
            ca.write_text(content)
        with pytest.raises(ConfigError, match=r"the CA certificate .* cannot be read"):
            client_context(ca)


def test_what_a_node_speaks_with_and_how_it_takes_its_leave(kits, monkeypatch):
    """No redirects, nothing packed, every answer measured; a CA and a key of its own."""
    made: list = []

    class Client:
        def __init__(self, url: str, interceptors: list, verify) -> None:
            made.append(self)
            self.url, self.interceptors, self.verify, self.said = url, interceptors, verify, []
            self._client = SimpleNamespace(follow_redirects=True, headers={}, event_hooks={})

        def __enter__(self):
            return self

        def __exit__(self, *_) -> None:
            self.said.append("closed")

        def ActivateNode(self, request):
            self.said.append((request.public_key, request.heartbeat_interval))
            return SimpleNamespace(node_id=7)

        def DeactivateNode(self, request):
            self.said.append(request.node_id)
            raise httpx.ConnectError("it is gone already")

    monkeypatch.setattr(module, "FleetHttpClient", Client)
    kit = read_kit(kits / "anne", "site")
    node = party(kit, 4711, [])
    with node._link(Stop(1)) as link:
        assert not link.gone.is_set()
        assert link._node.node_id == 7
    assert link.gone.is_set()
    (client,) = made
    assert (client.url, len(client.interceptors)) == ("https://127.0.0.1:4711", 1)
    assert client._client.follow_redirects is False
    assert client._client.headers == {"accept-encoding": "identity"}
    assert client._client.event_hooks == {"response": [bounded]}
    assert client.verify.verify_mode == ssl.CERT_REQUIRED
    assert client.verify.check_hostname
    assert client.verify.minimum_version == ssl.TLSVersion.TLSv1_3
    assert client.said == [(kit.roster.node_keys["anne"], 15.0), 7, "closed"]
