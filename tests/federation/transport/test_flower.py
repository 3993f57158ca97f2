from __future__ import annotations

import sys
from collections import UserDict
from types import SimpleNamespace

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from fedllm.errors import PeerError
from fedllm.federation.transport import flower
from fedllm.federation.transport.engines import LocalGrid, partition_of, task_identity
from fedllm.federation.transport.flower import (
    SERVER_NODE,
    GridPresence,
    answer,
    exchange,
    from_content,
    to_content,
)


def test_header_and_blobs_survive_flowers_records():
    for size in (1000, 1 << 18):
        blobs = {"a": b"\x00\xff" * size, "b": b""}
        assert from_content(to_content("{}", blobs)) == ("{}", blobs)
    assert from_content(to_content("{}", {})) == ("{}", {})


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"header": ConfigRecord({"json": 3})}),
        RecordDict({"header": ConfigRecord({"json": "{}", "x": b"1"})}),
        RecordDict({"header": ConfigRecord({"json": "{}", "blob.x": "text"})}),
        RecordDict({"header": ConfigRecord({"json": "{}"}), "more": ConfigRecord({"x": 1})}),
        RecordDict(
            {
                "header": ConfigRecord({"json": "{}"}),
                "blobs": ArrayRecord({"a": Array("uint8", (1,), "numpy.ndarray", b"x")}),
            }
        ),
    ],
)
def test_other_records_are_refused(content):
    with pytest.raises(PeerError):
        from_content(content)


def make_app(ran: list[int]) -> ClientApp:
    app = ClientApp()

    @app.query("echo")
    def echo(message: Message, context) -> Message:
        ran.append(partition_of(context))
        if ran[-1] == 1:
            raise RuntimeError("secret of a patient")
        return answer(message, lambda header, blobs: (header + str(ran[-1]), blobs))

    return app


def test_every_node_answers_once_and_errors_lose_their_text():
    ran: list[int] = []
    grid = LocalGrid(make_app(ran), 3)
    contents = {node: to_content("n", {"x": b"1"}) for node in grid.get_node_ids()}
    with task_identity(1, SERVER_NODE):
        replies = exchange(grid, "query.echo", contents, 10.0)
        first = next(replies)
        assert ran == [0], "replies are computed one at a time"
        rest = list(replies)
    assert [reply.node for reply in (first, *rest)] == grid.get_node_ids()
    assert from_content(first.content) == ("n0", {"x": b"1"})
    assert rest[0].content is None
    assert "patient" not in rest[0].failure


class Made(UserDict):
    """Contents for nodes, and for whom they were made so far."""

    def __init__(self, nodes):
        self.made: list[int] = []
        super().__init__({node: to_content("n", {}) for node in nodes})

    def __getitem__(self, node):
        self.made.append(node)
        return super().__getitem__(node)


def test_where_sites_take_turns_a_message_is_made_when_the_one_before_was_answered():
    grid = LocalGrid(make_app([]), 5)
    contents = Made(grid.get_node_ids())
    with task_identity(1, SERVER_NODE):
        for done, _ in enumerate(exchange(grid, "query.echo", contents, 10.0), 1):
            assert contents.made == grid.get_node_ids()[:done]


def test_elsewhere_all_are_asked_before_anybody_is_waited_for_and_few_messages_are_held():
    pushed: list[int] = []

    class Far(LocalGrid):
        window = 1000

        def push_messages(self, messages):
            pushed.append(len(messages))
            return super().push_messages(messages)

        def pull_messages(self, message_ids):
            assert sum(pushed) == 40
            return super().pull_messages(message_ids)

    grid = Far(make_app([]), 40)
    contents = Made(grid.get_node_ids())
    with task_identity(1, SERVER_NODE):
        replies = list(exchange(grid, "query.echo", contents, 10.0))
    assert sorted(reply.node for reply in replies) == grid.get_node_ids()
    assert max(pushed) <= 16


def test_sites_that_wait_for_their_turn_are_not_late():
    grid = LocalGrid(make_app([]), 4)
    contents = {node: to_content("n", {}) for node in (100, 102, 103)}
    with task_identity(1, SERVER_NODE):
        replies = list(exchange(grid, "query.echo", contents, 0.0))
    assert [reply.failure for reply in replies] == ["", "", ""]


def test_a_node_that_never_answers_is_reported_after_the_timeout():
    class Deaf(LocalGrid):
        def pull_messages(self, message_ids):
            return []

    grid = Deaf(make_app([]), 1)
    contents = {100: to_content("n", {})}
    with task_identity(1, SERVER_NODE):
        (reply,) = exchange(grid, "query.echo", contents, 0.1)
    assert reply.content is None
    assert "no answer within" in reply.failure


class Comings:
    """Says of the one node what the test tells it to."""

    def __init__(self, *marks: str | None) -> None:
        self._marks = list(marks)

    def mark(self, node: int) -> str | None:
        return self._marks.pop(0) if len(self._marks) > 1 else self._marks[0]


class Forgetful(LocalGrid):
    """Loses the first messages, as a node does that is killed."""

    def __init__(self, lost: int) -> None:
        super().__init__(make_app([]), 1)
        self.lost, self.pushed = lost, 0

    def push_messages(self, messages):
        self.pushed += 1
        sent = super().push_messages(messages)
        if self.pushed <= self.lost:
            self._queue.clear()
        return sent


def ask(grid: LocalGrid, presence: Comings | None, timeout_s: float = 60.0):
    contents = {100: to_content("n", {})}
    with task_identity(1, SERVER_NODE):
        (reply,) = exchange(grid, "query.echo", contents, timeout_s, presence)
    return reply


def test_a_node_that_was_started_anew_is_asked_again():
    grid = Forgetful(lost=2)
    reply = ask(grid, Comings("monday", "monday", "tuesday", "tuesday", "wednesday"))
    assert from_content(reply.content) == ("n0", {})
    assert grid.pushed == 3


class Meddling(LocalGrid):
    """Where another node says of each message that it has failed."""

    def __init__(self) -> None:
        super().__init__(make_app([]), 2)

    def pull_messages(self, message_ids):
        failed = []
        for message in self._queue:
            with task_identity(1, 101):
                failed.append(Message(Error(code=ErrorCode.UNKNOWN, reason="I"), reply_to=message))
            failed[-1].metadata.__dict__["_src_node_id"] = 101
        self._queue.clear()
        return failed


def test_a_nodes_failure_is_its_own_to_tell():
    reply = ask(Meddling(), None, timeout_s=0.2)
    assert reply.content is None
    assert "no answer within" in reply.failure


@pytest.mark.parametrize(
    ("code", "told", "hint"),
    [
        (ErrorCode.NODE_UNAVAILABLE, "connection to it was lost", "its network"),
        (ErrorCode.MESSAGE_UNAVAILABLE, "not fetched in time", "its service runs"),
        (ErrorCode.REPLY_MESSAGE_UNAVAILABLE, "came too late", "rounds.timeout_s"),
        (ErrorCode.CLIENT_APP_CRASHED, "working process ended", "its own log"),
        (ErrorCode.UNKNOWN, "Error: Node Unavailable", "its own log"),
    ],
)
def test_flowers_own_failures_are_told_in_words_with_a_hint(code, told, hint):
    class Fails(LocalGrid):
        def _answer(self, message):
            with task_identity(1, message.metadata.dst_node_id):
                return Message(Error(code, "Error: Node Unavailable"), reply_to=message)

    reply = ask(Fails(make_app([]), 1), None)
    assert reply.content is None
    assert told in reply.failure
    assert hint in reply.remedy
    assert ("Unavailable" in reply.failure) == (code == ErrorCode.UNKNOWN)


def test_a_node_that_left_is_not_waited_for():
    reply = ask(Forgetful(lost=9), Comings("monday", "monday", None))
    assert "not connected any more" in reply.failure


class Clock:
    """Time that passes in sleep alone; a loop that goes on past the deadline is a failure."""

    def __init__(self, ends_s: float) -> None:
        self.now, self.ends_s = 0.0, ends_s

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        assert self.now < self.ends_s, "still waiting"


def test_a_node_is_silent_from_its_deadline_on_and_gone_until_then(monkeypatch):
    """Whichever of the two comes first is the reason, however short the time that is left."""
    for presence, failure, ends_s in (
        (None, "no answer within 3 s", 4.0),
        (Comings("monday"), "no answer within 3 s", 4.0),
        (Comings("monday", "monday", None), "it is not connected any more", 0.4),
        (Comings(*["monday"] * 28, None), "it is not connected any more", 4.0),
    ):
        clock = Clock(ends_s)
        monkeypatch.setattr("fedllm.federation.transport.flower.time", clock)
        reply = ask(Forgetful(lost=9), presence, timeout_s=3.0)
        assert (reply.content, reply.failure) == (None, failure)


def test_a_message_that_was_not_taken_is_a_failure():
    class Full(LocalGrid):
        def push_messages(self, messages):
            return ["" for _ in messages]

    reply = ask(Full(make_app([]), 1), Comings("monday"))
    assert "could not be sent" in reply.failure


def test_presence_tells_who_is_connected_by_which_key_and_since_when():
    node = SimpleNamespace(node_id=7, public_key=b"its key", last_activated_at="monday")
    presence = GridPresence(SimpleNamespace(get_nodes=lambda: [node]))
    assert presence.keys() == {b"its key": 7}
    assert presence.mark(7) == "monday"
    assert presence.mark(8) is None


def test_a_grid_of_this_process_is_one_of_flowers(monkeypatch):
    from flwr.supercore.run import Run

    from fedllm.federation.transport import flower

    ran: list[int] = []
    grid = LocalGrid(make_app(ran), 3)
    run = Run.create_empty(run_id=7)
    grid.set_run(run)
    assert grid.run is run
    assert [node.node_id for node in grid.get_nodes()] == list(grid.get_node_ids())
    with task_identity(7, SERVER_NODE):
        made = [
            grid.create_message(to_content("n", {}), "query.echo", node, "group", 5.0)
            for node in (100, 102)
        ]
        replies = grid.send_and_receive(made)
    assert (made[0].metadata.dst_node_id, made[0].metadata.ttl) == (100, 5.0)
    assert made[0].metadata.group_id == "group"
    assert [from_content(reply.content)[0] for reply in replies] == ["n0", "n2"]
    assert flower.nodes_of(grid, 3, 0.0) == [100, 101, 102]
    waits: list[float] = []
    clock = SimpleNamespace(monotonic=iter(range(99)).__next__, sleep=waits.append)
    monkeypatch.setattr(flower, "time", clock)
    with pytest.raises(PeerError, match="3 of 4 sites are connected"):
        flower.nodes_of(grid, 4, 3.0)
    assert len(waits) == 3


def test_what_another_node_says_in_its_place_is_no_answer():
    class Mixed(LocalGrid):
        """Node 101 answers the message of node 100 first."""

        def pull_messages(self, message_ids):
            (reply,) = super().pull_messages(message_ids) or [None]
            if reply is not None:
                reply.metadata.__dict__["_src_node_id"] = 101
            return [] if reply is None else [reply]

    with task_identity(1, SERVER_NODE):
        (reply,) = exchange(Mixed(make_app([]), 2), "query.echo", {100: to_content("n", {})}, 0.1)
    assert reply.content is None
    assert "no answer within" in reply.failure


def test_an_engine_that_is_not_installed_is_named(monkeypatch):
    import importlib.util

    from fedllm.errors import FedllmError
    from fedllm.federation.transport.engines import run_with_ray

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FedllmError) as caught:
        run_with_ray(None, None, 1, 1)
    assert caught.value.message == "the engine 'ray' needs Ray"


def test_both_apps_run_in_one_process_and_the_sender_is_the_server():
    from flwr.serverapp import ServerApp
    from flwr.supercore.task_identity import TaskIdentity

    from fedllm.federation.transport.engines import run_in_process

    seen = []
    server = ServerApp()

    @server.main()
    def main(grid, context) -> None:
        seen.append((context.run_id, context.node_id, TaskIdentity._run_id, TaskIdentity._node_id))
        seen.append(list(grid.get_node_ids()))
        seen.extend(exchange(grid, "query.echo", {100: to_content("n", {})}, 1.0))

    before = (TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id)
    run_in_process(server, make_app([]), ["anne", "bob"])
    assert seen[:2] == [(1, 0, 1, SERVER_NODE), [100, 101]]
    assert from_content(seen[2].content) == ("n0", {})
    assert (TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id) == before


@pytest.mark.parametrize(("cores", "threads", "enough"), [(2, 8, 8), (8, 2, 8), (None, 1, 1)])
def test_ray_has_cores_for_one_site_at_least_and_all_of_the_machine(
    monkeypatch, cores, threads, enough
):
    """An actor that asks for more than there is would wait for ever."""
    from fedllm.federation.transport import engines

    asked: list[dict] = []
    module = SimpleNamespace(run_simulation=lambda *_, backend_config: asked.append(backend_config))
    monkeypatch.setitem(sys.modules, "flwr.simulation.run_simulation", module)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(engines, "os", SimpleNamespace(cpu_count=lambda: cores, environ={}))
    engines.run_with_ray(None, None, 3, threads)
    environ = {"RAY_ADDRESS": "ray://there"}
    monkeypatch.setattr(engines, "os", SimpleNamespace(cpu_count=lambda: cores, environ=environ))
    engines.run_with_ray(None, None, 3, threads)
    alone, joined = asked
    assert alone["init_args"]["num_cpus"] == enough
    assert "num_cpus" not in joined["init_args"]
    assert alone["client_resources"] == {"num_cpus": threads, "num_gpus": 0.0}


def test_nodes_are_waited_for_and_returned_in_order(monkeypatch):
    now, there = [0.0], [7, 3]

    def sleep(seconds: float) -> None:
        now[0] += 1.0
        if now[0] == 3.0:
            there.append(5)

    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=sleep)
    monkeypatch.setattr(flower, "time", clock)
    grid = SimpleNamespace(get_node_ids=lambda: there)
    assert flower.nodes_of(grid, 2, 0.0) == [3, 7]
    assert now == [0.0]
    assert flower.nodes_of(grid, 3, 10.0) == [3, 5, 7]
    with pytest.raises(PeerError, match="3 of 4 sites are connected"):
        flower.nodes_of(grid, 4, 10.0)
    assert now == [14.0], "at ten seconds it is looked once more"
