"""The service answers OpenAI's own client as the commands answer."""

from __future__ import annotations

import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
import torch
from support.serving_runs import LABELS, make_run, service

from fedllm.models.drawing import Sampling
from fedllm.models.generation import Writing
from fedllm.models.prompt_cache import PromptCache
from fedllm.serving.conversation import Conversation
from fedllm.serving.guard import Guard, Pattern
from fedllm.serving.served import serve_models
from fedllm.serving.usable import open_usable


@pytest.fixture(scope="module")
def places(tiny_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    longer = {"max_length": 120}
    return {
        "answers": make_run(
            tiny_checkpoint("llama"), folder, "instruction", "answers", model=longer
        ),
        "others": make_run(tiny_checkpoint("llama"), folder, "instruction", "others", model=longer),
        "labels": make_run(tiny_checkpoint("bert"), folder, "classification", "labels"),
        "spans": make_run(tiny_checkpoint("bert"), folder, "token_classification", "spans"),
    }


@pytest.fixture(scope="module")
def models(places, tiny_checkpoint):
    bases = [f"plain={tiny_checkpoint('gpt2')}", f"encoder={tiny_checkpoint('bert')}"]
    return serve_models([*map(str, places.values()), *bases], None, None, None, None)


@pytest.fixture(scope="module")
def running(models):
    with service(models) as found:
        yield found


@pytest.fixture(scope="module")
def client(running):
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def asked(*turns):
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": turn} for n, turn in enumerate(turns)]


FIXED = {"temperature": 0, "max_tokens": 8}


def test_models_are_listed(client, models):
    assert {model.id for model in client.models.list()} == set(models)


def test_a_chat_is_answered_as_on_the_command_line(client, places):
    talk = Conversation.of(open_usable(places["answers"]))
    pieces = []
    talk.say("my card", Writing(8), pieces.append)
    found = client.chat.completions.create(model="answers", messages=asked("my card"), **FIXED)
    (choice,) = found.choices
    assert choice.message.content == "".join(pieces) != ""
    assert choice.finish_reason in ("stop", "length")
    assert found.usage.completion_tokens <= 8
    assert found.usage.total_tokens > found.usage.completion_tokens
    pieces.clear()
    first = choice.message.content
    talk.say("lost", Writing(8), pieces.append)
    again = client.chat.completions.create(
        model="answers", messages=asked("my card", first, "lost"), **FIXED
    )
    assert again.choices[0].message.content == "".join(pieces)


def test_a_stream_is_the_whole_in_pieces(client):
    request = {"model": "answers", "messages": asked("my card"), "max_tokens": 20}
    request |= {"temperature": 1.5, "seed": 3}
    whole = client.chat.completions.create(**request)
    parts = list(
        client.chat.completions.create(
            **request, stream=True, stream_options={"include_usage": True}
        )
    )
    told = [part.choices[0] for part in parts if part.choices]
    assert told[0].delta.role == "assistant"
    text = "".join(one.delta.content or "" for one in told)
    assert text == whole.choices[0].message.content
    assert [one.finish_reason for one in told][-1] == whole.choices[0].finish_reason
    assert parts[-1].usage == whole.usage
    assert len({part.id for part in parts}) == 1
    assert len(told) > 2


def test_adapters_on_one_base_are_chosen_by_name(client, models):
    texts = {
        name: client.chat.completions.create(model=name, messages=asked("my card"), **FIXED)
        .choices[0]
        .message.content
        for name in ("answers", "others")
    }
    assert texts["answers"] != texts["others"]
    one, other = (models[name].usable.released.model for name in ("answers", "others"))
    mine = dict(one.module.named_parameters())
    shared = [n for n, p in other.module.named_parameters() if p.data_ptr() == mine[n].data_ptr()]
    adapted = {segment.name for segment in one.tensors.segments}
    assert set(shared) == set(mine) - adapted


def test_texts_are_completed(client, models):
    generator = models["plain"].usable.generator
    ids = generator.tokenizer("my card")["input_ids"]
    (wanted,) = generator.write([ids], Writing(8))
    found = client.completions.create(model="plain", prompt=["my card", "fee", "my card"], **FIXED)
    assert [choice.index for choice in found.choices] == [0, 1, 2]
    assert found.choices[0].text == found.choices[2].text == wanted.text
    word = wanted.text.split()[2]
    stopped = client.completions.create(model="plain", prompt="my card", stop=word, **FIXED)
    assert stopped.choices[0].text == wanted.text[: wanted.text.index(word)]
    parts = list(client.completions.create(model="plain", prompt="my card", stream=True, **FIXED))
    assert "".join(part.choices[0].text for part in parts if part.choices) == wanted.text


def test_a_seed_repeats_an_answer_in_any_company(client):
    request = {"model": "plain", "prompt": "my card", "max_tokens": 12, "temperature": 1.5}

    def text(seed):
        return client.completions.create(**request, seed=seed).choices[0].text

    alone = text(7)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(text, [7, 1, 2, 7, 3, 4, 7, 5]))
    assert together[0] == together[3] == together[6] == alone
    assert len(set(together)) > 1
    several = client.completions.create(**request | {"prompt": ["my card"] * 4}, seed=7).choices
    assert several[0].text == alone
    assert len({choice.text for choice in several}) > 1


def test_vectors_come_from_encoders(client, models):
    texts = ["my card is lost", "fee"]
    for name in ("encoder", "labels"):
        found = client.embeddings.create(model=name, input=texts)
        plain = client.embeddings.create(model=name, input=texts, encoding_format="float")
        wanted, _ = models[name].usable.embedding.embed(texts)
        for place, row in enumerate(wanted):
            assert found.data[place].embedding == pytest.approx(row.tolist(), abs=1e-6)
            assert plain.data[place].embedding == pytest.approx(row.tolist(), abs=1e-6)
        assert torch.allclose(wanted.norm(dim=1), torch.ones(2), atol=1e-5)
    with pytest.raises(openai.BadRequestError, match="makes no vectors"):
        client.embeddings.create(model="answers", input="a")


def test_texts_are_labelled(running, models):
    def labelled(name, **more):
        body = {"model": name, "input": ["my card is lost", "fee"], **more}
        return httpx.post(f"{running.url}/v1/classify", json=body)

    found = labelled("labels", top=2).json()["data"]
    wanted = models["labels"].usable.predicting.predict(["my card is lost", "fee"])
    for one, said in zip(found, wanted, strict=True):
        assert one["label"] in LABELS
        assert len(one["labels"]) == 2
        assert one["probability"] == pytest.approx(said.fields(0)["probability"], abs=1e-6)
    assert "spans" in labelled("spans").json()["data"][0]
    assert labelled("plain").status_code == 400


def test_health_and_metrics(running, client):
    assert httpx.get(f"{running.url}/health").json() == {"status": "ok"}
    client.chat.completions.create(model="answers", messages=asked("my card"), **FIXED)
    page = httpx.get(f"{running.url}/metrics").text
    for line in (
        'fedllm_prompt_cache_texts_total{result="miss"}',
        "fedllm_prompt_cache_bytes",
        'fedllm_requests_total{endpoint="/v1/chat/completions",status="200",tenant="everybody"}',
        'fedllm_tokens_total{kind="written",model="answers",tenant="everybody"}',
        "fedllm_first_piece_seconds_bucket",
        "fedllm_waiting 0.0",
        "fedllm_writing 0.0",
    ):
        assert line in page


WRONG = [
    ({}, "model"),
    ({"model": "answers"}, "messages"),
    ({"model": "answers", "messages": []}, "messages"),
    ({"model": "answers", "messages": [{"role": "tool", "content": "a"}]}, "role"),
    ({"model": "answers", "messages": asked("a"), "n": 2}, "n is not served"),
    ({"model": "answers", "messages": asked("a"), "tools": [{}]}, "tools is not served"),
    ({"model": "answers", "messages": asked("a"), "logprobs": 0}, "logprobs is not served"),
    ({"model": "answers", "messages": asked("a"), "top_k": 1}, "top_k is not served"),
    ({"model": "answers", "messages": asked("a"), "min_p": 0.5}, "min_p is not served"),
    ({"model": "answers", "messages": asked("a"), "min_tokens": 5}, "min_tokens is not served"),
    (
        {"model": "answers", "messages": asked("a"), "repetition_penalty": 9},
        "repetition_penalty is not served",
    ),
    (
        {"model": "answers", "messages": asked("a"), "function_call": {"name": "f"}},
        "function_call is not served",
    ),
    ({"model": "answers", "messages": asked("a"), "guided_regex": "x"}, "guided_regex is not"),
    ({"model": "answers", "messages": asked("a"), "Zebediah Quux": 1}, "a field of another name"),
    (
        {"model": "answers", "messages": [{"role": "user", "content": "a", "tool_calls": [{}]}]},
        "tool_calls is not served",
    ),
    ({"model": "answers", "messages": asked("a"), "temperature": -1}, "temperature"),
    ({"model": "answers", "messages": asked("a"), "max_tokens": 0}, "max_tokens"),
    ({"model": "answers", "messages": asked("a", "b")}, "is not the user's"),
    ({"model": "labels", "messages": asked("a")}, "writes no text"),
]


@pytest.mark.parametrize(("body", "words"), WRONG)
def test_a_wrong_request_is_told_what_is_wrong(body, words, running):
    found = httpx.post(f"{running.url}/v1/chat/completions", json=body)
    assert found.status_code == 400
    error = found.json()["error"]
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"
    assert error["code"] is None


@pytest.mark.parametrize("content", [b"{", b"[" * 100_000, b'{"model": "\xff"}'])
def test_what_is_no_json_is_refused_in_the_same_form(content, running):
    found = httpx.post(
        f"{running.url}/v1/completions",
        content=content,
        headers={"content-type": "application/json"},
    )
    assert found.status_code == 400
    error = found.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"].startswith("the body ")
    assert error["param"] is None


def test_a_path_that_is_not_there_is_named(running):
    error = httpx.post(f"{running.url}/v1/responses", json={}).json()["error"]
    assert "there is no /v1/responses here" in error["message"]
    assert "/v1/chat/completions" in error["message"]


def test_a_text_without_a_token_is_refused(running):
    for prompt in (" ", ["my card", " "]):
        body = {"model": "plain", "prompt": prompt}
        found = httpx.post(f"{running.url}/v1/completions", json=body)
        assert (found.status_code, "no tokens" in found.text) == (400, True)


def test_a_temperature_next_to_nothing_takes_the_likeliest(running):
    body = {"model": "plain", "prompt": "my card", "max_tokens": 4}
    url = f"{running.url}/v1/completions"
    cold, zero = (
        httpx.post(url, json=body | {"temperature": t}).json()["choices"] for t in (1e-44, 0)
    )
    assert cold == zero


def test_what_changes_nothing_is_taken(client):
    found = client.chat.completions.create(
        model="answers", messages=asked("a"), user="x", n=1, metadata={"a": "b"}, **FIXED
    )
    assert found.choices


def test_a_system_and_parts_of_content_are_heard(client):
    system = [{"role": "developer", "content": "bank loan rate"}]
    parts = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "my "}, {"type": "text", "text": "card"}],
        }
    ]
    plain = client.chat.completions.create(model="answers", messages=asked("my card"), **FIXED)
    same = client.chat.completions.create(model="answers", messages=parts, **FIXED)
    told = client.chat.completions.create(model="answers", messages=system + parts, **FIXED)
    assert same.choices[0].message.content == plain.choices[0].message.content
    assert told.usage.prompt_tokens > same.usage.prompt_tokens


# --- prompts that begin alike ---------------------------------------------------------------------


def test_a_beginning_is_read_once(models):
    """And the answer is the same; of the next turn what was answered is known too."""
    said = "my card is lost " * 6
    body = {"model": "answers", "messages": asked(said), "temperature": 0, "max_tokens": 8}
    with service(models, cache=PromptCache(0)) as running:
        plain = httpx.post(f"{running.url}/v1/chat/completions", json=body).json()
        turns = asked(said, plain["choices"][0]["message"]["content"], "fee")
        again = body | {"messages": turns}
        wanted = httpx.post(f"{running.url}/v1/chat/completions", json=again).json()
        assert wanted["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
        assert "fedllm_prompt_cache_bytes 0.0" in httpx.get(f"{running.url}/metrics").text
    cache = PromptCache()
    with service(models, cache=cache) as running:
        url = f"{running.url}/v1"
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
            first = client.chat.completions.create(**body)
            assert first.usage.prompt_tokens_details.cached_tokens == 0
            assert first.choices[0].message.content == plain["choices"][0]["message"]["content"]
            second = client.chat.completions.create(**again)
            read = first.usage.total_tokens - 1
            assert second.usage.prompt_tokens_details.cached_tokens == read // 16 * 16 > 16
            assert second.choices[0].message.content == wanted["choices"][0]["message"]["content"]
            parts = list(
                client.chat.completions.create(
                    **body, stream=True, stream_options={"include_usage": True}
                )
            )
            assert parts[-1].usage.prompt_tokens_details.cached_tokens > 0
            text = "".join(p.choices[0].delta.content or "" for p in parts if p.choices)
            assert text == first.choices[0].message.content
        page = httpx.get(f"{running.url}/metrics").text
        assert 'fedllm_prompt_cache_texts_total{result="hit"} 2.0' in page
        assert 'fedllm_prompt_cache_texts_total{result="miss"} 1.0' in page
        assert f"fedllm_prompt_cache_bytes {float(cache.used_bytes)!r}" in page
        assert cache.used_bytes > 0
    # Nothing outlives the service.
    assert (cache.used_bytes, len(cache._blocks)) == (0, 0)


# --- the guard ----------------------------------------------------------------------------------


def test_the_guard_masks_what_is_written_and_counts(models):
    """The tiny model's words stand for what is masked."""
    word = Pattern("fee", re.compile(r"\b\w+ \w+\b"))
    with service(models, guard=Guard((word,), 16)) as running:
        with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none") as client:
            request = {"model": "plain", "prompt": "my card", **FIXED}
            whole = client.completions.create(**request).choices[0].text
            parts = client.completions.create(**request, stream=True)
            assert "".join(part.choices[0].text for part in parts if part.choices) == whole
            assert "[fee]" in whole
        page = httpx.get(f"{running.url}/metrics").text
        assert f'fedllm_masked_total{{pattern="fee"}} {2 * whole.count("[fee]")}.0' in page
        labels = httpx.post(
            f"{running.url}/v1/classify", json={"model": "spans", "input": "my card fee"}
        )
        assert "[fee]" not in labels.text


def test_a_guard_that_breaks_ends_its_text_alone(models):
    broken = []

    def check(plain):
        if broken:
            raise RuntimeError(plain)
        return False

    word = Pattern("word", re.compile(r"\b\w+ \w+\b"), check)
    body = {"model": "plain", "prompt": "my card", **FIXED}
    with service(models, guard=Guard((word,), 16)) as running:
        url = f"{running.url}/v1/completions"
        text = httpx.post(url, json=body).json()["choices"][0]["text"]
        broken.append(1)
        answer = httpx.post(url, json=body)
        assert answer.status_code == 500
        assert answer.json()["error"]["type"] == "server_error"
        streamed = httpx.post(url, json=body | {"stream": True})
        assert '"server_error"' in streamed.text
        assert "[DONE]" not in streamed.text
        broken.clear()
        assert httpx.post(url, json=body).json()["choices"][0]["text"] == text
        page = httpx.get(f"{running.url}/metrics").text
        assert 'fedllm_errors_total{kind="RuntimeError"} 2.0' in page
    for word in text.split():
        assert not any(word in line.split() for line in running.log)


# --- many at once -------------------------------------------------------------------------------


def test_many_are_written_together(models, monkeypatch):
    """More than eight at a time are one batch of the model."""
    lane = models["plain"].lane
    widths = []
    own = lane.batch._network.forward

    def forward(*args, **kwargs):
        widths.append(len(kwargs["input_ids"]))
        return own(*args, **kwargs)

    with service(models) as running:
        url, body = f"{running.url}/v1/completions", {"model": "plain", "prompt": "my card"}
        body |= {"max_tokens": 40, "temperature": 0}
        wanted = httpx.post(url, json=body, timeout=60).json()["choices"][0]["text"]
        monkeypatch.setattr(lane.batch._network, "forward", forward)
        with ThreadPoolExecutor(12) as pool:
            found = list(pool.map(lambda _: httpx.post(url, json=body, timeout=60), range(12)))
        assert {one.json()["choices"][0]["text"] for one in found} == {wanted}
    assert max(widths) >= 8


def test_it_stops_when_what_is_under_way_is_answered(models):
    found = []
    with service(models) as running:
        body = {"model": "plain", "prompt": "my card", "max_tokens": 60, "temperature": 0}

        def ask():
            found.append(httpx.post(f"{running.url}/v1/completions", json=body, timeout=60))

        asking = threading.Thread(target=ask)
        asking.start()
        while not running.engine.load[0]:
            pass
    asking.join()
    assert found[0].status_code == 200
    assert json.loads(found[0].content)["choices"][0]["finish_reason"] == "length"
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{running.url}/health")


def test_an_encoder_decoder_is_served_too(tiny_checkpoint, tmp_path):
    from support.tiny_models import save_tiny

    base = save_tiny("t5", tmp_path / "t5")
    run = make_run(
        base, tmp_path, "instruction", "pair", lora={"rank": 2}, model={"max_length": 40}
    )
    served = serve_models([str(run)], None, None, None, None)
    usable = served["pair"].usable
    prompt = usable.conversing().prompt("my card", None)
    (wanted,) = usable.generator.write([prompt.ids], Writing(6, sampling=Sampling()))
    with (
        service(served) as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="none") as client,
    ):
        found = client.chat.completions.create(
            model="pair", messages=asked("my card"), temperature=0, max_tokens=6
        )
    assert found.choices[0].message.content == wanted.text.strip()
