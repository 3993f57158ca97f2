"""What is wrong with a request is told in plain words, with its field, and without what it held."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from fedllm.serving.asked import ChatBody, ClassifyBody
from fedllm.serving.unreadable import told_of

HI = [{"role": "user", "content": "hi"}]
TEXTS = [
    ({"model": "a"}, "input is missing", "input"),
    ({"model": "a", "input": ""}, "input is empty", "input"),
    ({"model": "a", "input": []}, "input is empty", "input"),
    ({"model": "a", "input": ["x", ""]}, "input.1 is empty", "input.1"),
    ({"model": "a", "input": ["x", 5]}, "input.1 is no text", "input.1"),
    ({"model": "a", "input": 5}, "input is neither a text nor a list of texts", "input"),
    ({"model": "a", "input": {"Zebediah": 1}}, "input is neither a text nor a list", "input"),
    ({"model": "a", "input": ["x"] * 65}, "input has more than 64 entries", "input"),
    ({"model": 5, "input": "x"}, "model is no text", "model"),
    ({"model": "a", "input": "x", "top": 1.5}, "top is no whole number", "top"),
    ({"model": "a", "input": "x", "top": -1}, "top is less than 0", "top"),
    ({"model": "a", "input": "x", "top_k": 3}, "top_k is not served", "top_k"),
    ({"model": "a", "input": "x", "Zebediah Q": 3}, "a field of another name is not served", None),
    ([], "the body is no JSON object", None),
]
CHATS = [
    ({"model": "a", "messages": HI, "n": 2}, "n is not served", "n"),
    ({"model": "a", "messages": HI, "stream": "Zebediah"}, "stream is neither true nor", "stream"),
    ({"model": "a", "messages": HI, "temperature": "Z"}, "temperature is no number", "temperature"),
    ({"model": "a", "messages": HI, "top_p": 0}, "top_p is not more than 0", "top_p"),
    ({"model": "a", "messages": HI, "stop": ["a", ""]}, "stop.1 is empty", "stop.1"),
    (
        {"model": "a", "messages": [{"role": "Zebediah", "content": "a"}]},
        "messages.0.role is none of 'system', 'developer', 'user' or 'assistant'",
        "messages.0.role",
    ),
    (
        {"model": "a", "messages": [{"role": "user", "content": 5}]},
        "messages.0.content is neither a text nor a list",
        "messages.0.content",
    ),
    (
        {"model": "a", "messages": [*HI, {"role": "user", "content": "a", "tool_calls": [{}]}]},
        "tool_calls is not served",
        "messages.1.tool_calls",
    ),
    (
        {"model": "a", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "messages.0.content.0.type is none of 'text'",
        "messages.0.content.0.type",
    ),
]


@pytest.mark.parametrize(
    ("kind", "body", "words", "field"),
    [*((ClassifyBody, *one) for one in TEXTS), *((ChatBody, *one) for one in CHATS)],
)
def test_a_wrong_field_is_told_in_plain_words(kind, body, words, field):
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(body)
    # As FastAPI has them.
    errors = [{**one, "loc": ("body", *one["loc"])} for one in caught.value.errors()]
    told, of = told_of(errors)
    assert told.startswith(words)
    assert of == field
    for strange in ("string", "constrained", "Value error", "Input", "Zebediah", "{"):
        assert strange not in told


def test_what_is_no_json_has_no_field():
    error = {"type": "json_invalid", "loc": ("body", 1), "msg": "JSON decode error", "ctx": {}}
    assert told_of([error]) == ("the body is not valid JSON", None)
    assert told_of([]) == ("the body cannot be read", None)
