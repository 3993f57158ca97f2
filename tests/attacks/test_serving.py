"""What a stranger, a tenant or a crowd may try against `fedllm serve`."""

from __future__ import annotations

import hashlib
import json
import logging
import select
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest
from support.serving_runs import make_run, service

from fedllm.data.template import conversation_text
from fedllm.models.prompt_cache import PromptCache
from fedllm.serving.door import Gate, _is_local
from fedllm.serving.keys import Keys, Tenant
from fedllm.serving.served import serve_models
from fedllm.tasks import prompting

SECRET = "Zebediah Quux has the plague"
WARD, LAB = "w" * 32, "l" * 32


def tenant(name, key, *models):
    return Tenant(name, frozenset(models), hashlib.sha256(key.encode()).digest())


KEYS = Keys((tenant("ward", WARD, "mine"), tenant("lab", LAB, "theirs", "labels")))


@pytest.fixture(scope="module")
def models(tiny_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    llama, longer = tiny_checkpoint("llama"), {"max_length": 120}
    runs = [make_run(llama, folder, "instruction", n, model=longer) for n in ("mine", "theirs")]
    runs.append(make_run(tiny_checkpoint("bert"), folder, "classification", "labels"))
    return serve_models([str(run) for run in runs], None, None, None, None)


@pytest.fixture(scope="module")
def running(models):
    with service(models, KEYS, body_bytes=4096) as found:
        yield found


def post(running, path, body, key=WARD, **settings):
    headers = {"authorization": f"Bearer {key}"} if key else {}
    url = f"{running.url}/v1/{path}"
    return httpx.post(url, json=body, headers=headers, timeout=60, **settings)


def chat(model="mine", text="my card", **more):
    said = [{"role": "user", "content": text}]
    return {"model": model, "messages": said, "max_tokens": 4, "temperature": 0, **more}


# --- keys ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, "", "x", WARD[:-1], WARD + " x", LAB.upper()])
def test_a_wrong_key_opens_nothing(key, running):
    found = post(running, "chat/completions", chat(), key)
    assert found.status_code == 401
    assert found.json()["error"]["type"] == "authentication_error"
    for path in ("/v1/models", "/metrics"):
        headers = {"authorization": f"Bearer {key}"} if key else {}
        assert httpx.get(running.url + path, headers=headers).status_code == 401
    assert httpx.get(f"{running.url}/health").status_code == 200


def test_a_wrong_key_is_refused_before_the_body_is_read(running):
    with socket.create_connection(("127.0.0.1", running.port)) as line:
        line.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 4000\r\n"
            b"authorization: Bearer nobody\r\n\r\n"
        )
        assert b" 401 " in line.recv(4096)


def test_another_tenants_model_is_as_one_that_is_not_there(running):
    theirs = post(running, "chat/completions", chat("theirs"))
    none = post(running, "chat/completions", chat("nothing"))
    assert theirs.status_code == none.status_code == 404
    assert theirs.content == none.content
    for path, body in (
        ("completions", {"model": "theirs", "prompt": "a"}),
        ("embeddings", {"model": "labels", "input": "a"}),
        ("classify", {"model": "labels", "input": "a"}),
    ):
        assert post(running, path, body).status_code == 404
    assert post(running, "chat/completions", chat("theirs"), LAB).status_code == 200
    headers = {"authorization": f"Bearer {WARD}"}
    listed = httpx.get(f"{running.url}/v1/models", headers=headers).json()
    assert [model["id"] for model in listed["data"]] == ["mine"]


def cached(answer):
    return answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_time_does_not_tell_what_another_tenant_asked(models):
    """What one asked is read anew for another, and for another model."""
    asked = chat("shared", "my card is lost " * 6)
    keys = Keys((tenant("ward", WARD, "shared", "mine"), tenant("lab", LAB, "shared", "theirs")))
    shared = {**models, "shared": models["theirs"], "mine": models["mine"]}
    with service(shared, keys) as running:
        assert cached(post(running, "chat/completions", asked)) == 0
        assert cached(post(running, "chat/completions", asked, LAB)) == 0
        assert cached(post(running, "chat/completions", asked | {"model": "mine"})) == 0
        assert cached(post(running, "chat/completions", asked)) > 0
        assert cached(post(running, "chat/completions", asked, LAB)) > 0


def test_what_breaks_leaves_nothing_behind(models, monkeypatch):
    cache, asked = PromptCache(), chat(text="my card is lost " * 6)
    with service(models, KEYS, cache=cache) as running:
        post(running, "chat/completions", asked)
        assert cache.used_bytes > 0

        def broken(*arguments):
            raise ValueError(SECRET)

        monkeypatch.setattr(models["mine"].lane.batch, "_logits", broken)
        assert post(running, "chat/completions", asked).status_code == 500
        assert cache.used_bytes == 0
        monkeypatch.undo()
        assert cached(post(running, "chat/completions", asked)) == 0
        assert cached(post(running, "chat/completions", asked)) > 0


# --- sizes --------------------------------------------------------------------------------------


def test_what_is_too_long_is_refused(running):
    assert post(running, "chat/completions", chat(text="card " * 2000)).status_code == 413
    found = post(running, "chat/completions", chat(text="card " * 400))
    assert found.status_code == 400
    assert found.json()["error"]["code"] == "context_length_exceeded"
    raw = {"model": "mine", "prompt": "card " * 400, "max_tokens": 4}
    assert post(running, "completions", raw).json()["error"]["code"] == "context_length_exceeded"
    many = {"model": "mine", "prompt": ["a"] * 65}
    assert post(running, "completions", many).status_code == 400
    greedy = post(running, "chat/completions", chat(max_tokens=10**9))
    assert greedy.json()["usage"]["completion_tokens"] <= 64


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"content-length: 99999999999999999999\r\n", b"413"),
        (b"content-length: 5000\r\n", b"413"),
        (b"transfer-encoding: chunked\r\n", b"411"),
        (b"", b"411"),
        (b"content-length: -1\r\n", b"400"),
    ],
)
def test_lengths_that_lie_are_refused(head, status, running):
    with socket.create_connection(("127.0.0.1", running.port)) as line:
        line.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
            + f"authorization: Bearer {WARD}\r\n".encode()
            + head
            + b"\r\n"
        )
        assert b" " + status + b" " in line.recv(4096)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b'{"a":' * 500, b'{"model": "\\ud800"}', b"null"]
)
def test_bodies_that_are_no_request_are_refused(content, running):
    headers = {"authorization": f"Bearer {WARD}", "content-type": "application/json"}
    url = f"{running.url}/v1/chat/completions"
    found = httpx.post(url, content=content, headers=headers)
    assert found.status_code in (400, 411)
    assert "error" in found.json()


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/v1/chat", "/v1/models/", "/%00"])
def test_there_is_nothing_else(path, running):
    headers = {"authorization": f"Bearer {WARD}"}
    assert httpx.get(running.url + path, headers=headers).status_code == 404
    assert post(running, "models", {}).status_code == 405


# --- time ---------------------------------------------------------------------------------------


def test_a_body_that_never_comes_is_given_up(models, monkeypatch):
    with service(models, KEYS, time_s=1.0) as running:
        with socket.create_connection(("127.0.0.1", running.port)) as line:
            line.settimeout(20)
            line.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n"
                + f"authorization: Bearer {WARD}\r\n\r\n".encode()
                + b'{"model'
            )
            assert b" 504 " in line.recv(4096)
        assert post(running, "chat/completions", chat()).status_code == 200


def test_an_answer_that_takes_too_long_is_given_up(models, monkeypatch):
    lane = models["mine"].lane
    own = lane.batch.add

    def slow(rows):
        time.sleep(1.5)
        return own(rows)

    monkeypatch.setattr(lane.batch, "add", slow)
    with service(models, KEYS, time_s=1.0) as running:
        assert post(running, "chat/completions", chat()).status_code == 504
        monkeypatch.undo()
        assert post(running, "chat/completions", chat()).status_code == 200
        assert not lane.batch.rows


def test_who_goes_away_is_not_written_for(models, monkeypatch):
    lane = models["mine"].lane
    own = lane.batch.step

    def slow():
        time.sleep(0.05)
        return own()

    monkeypatch.setattr(lane.batch, "step", slow)
    with service(models, KEYS) as running:
        body = json.dumps({"model": "mine", "prompt": "my card", "max_tokens": 60}).encode()
        for _ in range(4):
            with socket.create_connection(("127.0.0.1", running.port)) as line:
                line.sendall(
                    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n"
                    + b"content-type: application/json\r\n"
                    + f"authorization: Bearer {WARD}\r\n".encode()
                    + f"content-length: {len(body)}\r\n\r\n".encode()
                    + body
                )
                time.sleep(0.1)
        until = time.monotonic() + 20
        while sum(running.engine.load) and time.monotonic() < until:
            time.sleep(0.05)
        assert running.engine.load == (0, 0)
        assert not lane.batch.rows


# --- load ---------------------------------------------------------------------------------------


def test_a_crowd_is_answered_or_told_to_come_again(models):
    """Two hundred at once: each is answered right or refused with a time, and none is lost."""
    with service(models, KEYS, rows=4, waiting=8) as running:
        wanted = post(running, "chat/completions", chat()).json()["choices"][0]["message"]
        with ThreadPoolExecutor(200) as pool:
            found = list(pool.map(lambda _: post(running, "chat/completions", chat()), range(200)))
        answered = [one for one in found if one.status_code == 200]
        refused = [one for one in found if one.status_code == 429]
        assert len(answered) + len(refused) == 200
        assert answered
        assert refused
        assert all(one.json()["choices"][0]["message"] == wanted for one in answered)
        assert all(int(one.headers["retry-after"]) >= 1 for one in refused)
        assert post(running, "chat/completions", chat()).status_code == 200
        assert running.engine.load == (0, 0)


def test_a_request_of_many_texts_waits_or_is_refused_as_a_whole(models):
    with service(models, KEYS, rows=2, waiting=3) as running:
        body = {"model": "mine", "prompt": ["a"] * 4, "max_tokens": 2}
        found = post(running, "completions", body)
        # Of five places one of two tenants can have two.
        assert found.status_code == 400
        assert "takes 2" in found.text
        assert running.engine.load == (0, 0)


def half_a_request(running, key):
    line = socket.create_connection(("127.0.0.1", running.port))
    line.sendall(
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n"
        + f"authorization: Bearer {key}\r\n\r\n{{".encode()
    )
    return line


def test_a_tenant_that_never_ends_its_requests_shuts_nobody_out(models):
    with service(models, KEYS, at_once=6) as running, ExitStack() as lines:
        held = [lines.enter_context(half_a_request(running, WARD)) for _ in range(6)]
        refused, until = [], time.monotonic() + 30
        while len(refused) < 3 and time.monotonic() < until:
            refused = select.select(held, [], [], 1.0)[0]
        assert len(refused) == 3
        assert all(b" 429 " in line.recv(4096) for line in refused)
        assert post(running, "chat/completions", chat("theirs"), LAB).status_code == 200


# --- work for nobody ----------------------------------------------------------------------------


def test_a_conversation_that_is_too_long_is_put_together_once(running, monkeypatch):
    """And not once for each turn that one could drop."""
    looked = []
    monkeypatch.setattr(
        prompting, "conversation_text", lambda *a: looked.append(1) or conversation_text(*a)
    )
    turns = [{"role": ("user", "assistant")[n % 2], "content": "my card"} for n in range(61)]
    found = post(running, "chat/completions", chat() | {"messages": turns})
    assert (found.status_code, len(looked)) == (400, 1)
    assert found.json()["error"]["code"] == "context_length_exceeded"


def test_what_nobody_waits_for_is_not_computed_beside_another(models, monkeypatch):
    """One that is given up still ends before the next begins, and those that wait never do."""
    hold, begun, ended = threading.Event(), [], []

    def predict(texts):
        begun.append(1)
        assert hold.wait(30)
        yield "one"
        ended.append(1)
        yield "two"

    monkeypatch.setattr(models["labels"].usable.predicting, "predict", predict)
    with service(models, KEYS, time_s=0.5) as running:
        asked = {"model": "labels", "input": "a"}
        found = [post(running, "classify", asked, LAB).status_code for _ in range(3)]
        assert (found, len(begun)) == ([504] * 3, 1)
        hold.set()
        monkeypatch.undo()
        assert post(running, "classify", asked, LAB).status_code == 200
        assert (len(begun), ended) == (1, [])


# --- who reaches it -----------------------------------------------------------------------------


def test_a_second_host_hides_no_first_one():
    own, other = (b"host", b"localhost"), (b"host", b"evil.example")
    assert _is_local({"headers": [own]})
    for headers in ([own, other], [other, own], []):
        assert not _is_local({"headers": headers})


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil", "x"])
def test_a_web_page_reaches_no_service_without_keys(host, models):
    """By a name of its own that it lets point to loopback."""
    with service(models) as running:
        for path in ("/v1/models", "/health"):
            found = httpx.get(running.url + path, headers={"host": f"{host}:{running.port}"})
            assert found.status_code == 403
        for own in ("localhost", "LocalHost:8000", "127.0.0.1", "[::1]:1"):
            found = httpx.get(f"{running.url}/v1/models", headers={"host": own})
            assert found.status_code == 200


def test_health_says_that_nothing_writes_any_more(models, monkeypatch):
    with service(models, KEYS) as running:

        def broken(tickets):
            raise RuntimeError(SECRET)

        monkeypatch.setattr(running.engine, "_add", broken)
        assert post(running, "chat/completions", chat()).status_code == 500
        running.engine._thread.join(30)
        assert httpx.get(f"{running.url}/health").status_code == 503
        assert post(running, "chat/completions", chat()).status_code == 503


# --- nothing is told ----------------------------------------------------------------------------


def test_no_text_stands_in_a_log(models, caplog, capfd, monkeypatch):
    """Not of what was asked or answered, not of a key, also where something breaks."""
    caplog.set_level(logging.DEBUG)
    with service(models, KEYS) as running:
        post(running, "chat/completions", chat(text=SECRET))
        post(running, "classify", {"model": "labels", "input": SECRET}, LAB)
        post(running, "chat/completions", {"model": SECRET, "messages": SECRET})
        httpx.get(f"{running.url}/{SECRET}", headers={"authorization": f"Bearer {SECRET}"})

        def broken(*arguments, **settings):
            raise ValueError(SECRET)

        monkeypatch.setattr(models["labels"].usable.predicting, "predict", broken)
        found = post(running, "classify", {"model": "labels", "input": "a"}, LAB)
        assert found.status_code == 500
        assert SECRET not in found.text
        monkeypatch.setattr(models["mine"].lane.batch, "add", broken)
        found = post(running, "chat/completions", chat(text=SECRET))
        assert found.status_code == 500
        assert SECRET not in found.text
        page = httpx.get(f"{running.url}/metrics", headers={"authorization": f"Bearer {WARD}"}).text
        assert 'fedllm_errors_total{kind="ValueError"} 2.0' in page
        log = "\n".join(running.log)
    shown = capfd.readouterr()
    ours = "\n".join(r.getMessage() for r in caplog.records if not r.name.startswith("http"))
    for text in (log, shown.out, shown.err, page, ours):
        for private in (SECRET, "Zebediah", WARD, LAB):
            assert private not in text
    assert "POST /v1/chat/completions 200 ward" in log
    assert "error: ValueError in /v1/classify" in log
    assert "other 401 nobody" in log or "other 404" in log


def test_metrics_tell_a_tenant_nothing_of_another(models):
    boss = Tenant("boss", None, hashlib.sha256(b"b" * 32).digest(), oversees=True)
    with service(models, Keys((*KEYS.tenants, boss))) as running:
        post(running, "chat/completions", chat())
        post(running, "chat/completions", chat("theirs"), LAB)
        pages = {
            key: httpx.get(
                f"{running.url}/metrics", headers={"authorization": f"Bearer {key}"}
            ).text
            for key in (LAB, "b" * 32)
        }
    assert 'model="theirs",tenant="lab"' in pages[LAB]
    assert "fedllm_writing 0.0" in pages[LAB]
    # Nor sums over all, of which one's own could be taken.
    for word in ("ward", "mine", "seconds", "cache"):
        assert word not in pages[LAB]
        assert word in pages["b" * 32]


def test_a_method_of_ones_own_stands_in_no_log(running):
    with socket.create_connection(("127.0.0.1", running.port)) as line:
        line.sendall(b"ZEBEDIAH-" + b"Q" * 3000 + b" /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b" 405 " in line.recv(4096)
    # What it was is noted behind the answer.
    post(running, "chat/completions", chat())
    assert "ZEBEDIAH" not in "\n".join(running.log)
    assert any(one.startswith("other /v1/models 405 nobody") for one in running.log)


def test_a_refusal_quotes_nothing(running):
    for body in ({"model": "mine", "messages": SECRET}, chat(text=[{"type": SECRET}]), [SECRET]):
        found = post(running, "chat/completions", body)
        assert found.status_code == 400
        assert "Zebediah" not in found.text


def test_an_error_of_the_gate_itself_is_told_by_its_kind(models, monkeypatch):
    async def broken(self, *arguments):
        raise RuntimeError(SECRET)

    monkeypatch.setattr(Gate, "_answer", broken)
    with service(models, KEYS) as running:
        found = post(running, "chat/completions", chat())
        assert (found.status_code, SECRET in found.text) == (500, False)
        assert SECRET not in "\n".join(running.log)
