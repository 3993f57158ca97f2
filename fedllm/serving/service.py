"""The service: FastAPI's routes over the engine, in the form of OpenAI's API."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from fedllm.data.template import Turn
from fedllm.errors import ConfigError
from fedllm.models.drawing import Sampling
from fedllm.models.generation import Writing
from fedllm.serving.asked import (
    ChatBody,
    ClassifyBody,
    CompletionBody,
    EmbeddingBody,
    Written,
    several,
)
from fedllm.serving.door import Limits, failure
from fedllm.serving.engine import Busy, Engine
from fedllm.serving.forms import ChatForm, CompletionForm, Form
from fedllm.serving.guard import Guard
from fedllm.serving.keys import Tenant
from fedllm.serving.metrics import TYPE, Metrics
from fedllm.serving.served import Served
from fedllm.serving.writing import Order, Texts, Unwritten
from fedllm.tasks.prompting import Prompt

_DEFAULT_TOKENS = 256


class Refused(Exception):
    """An answer that is an error."""

    def __init__(
        self,
        status: int,
        message: str = "",
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(status)
        self.status, self.code, self.headers = status, code, headers
        self.body = failure(status, message, code=code)


@dataclass(frozen=True, eq=False)
class Service:
    """What requests are answered with."""

    models: Mapping[str, Served]
    engine: Engine
    metrics: Metrics
    limits: Limits
    guard: Guard | None
    most_tokens: int
    started: int = field(default_factory=lambda: int(time.time()))
    # One at a time: what labels and embeds uses all cores as it is.
    computing: asyncio.Lock = field(default_factory=asyncio.Lock)

    def model(self, name: str, request: Request) -> Served:
        """Return a model that the tenant may ask; another's is as one that is not there."""
        found = self.models.get(name)
        if found is None or not _tenant(request).may_ask(name):
            raise Refused(
                404, "there is no such model for this key: GET /v1/models", "model_not_found"
            )
        return found


def _tenant(request: Request) -> Tenant:
    return request.scope["state"]["tenant"]  # type: ignore[no-any-return]


def application(service: Service) -> FastAPI:
    """Return the routes."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    # FastAPI's own answer quotes what was sent.
    app.add_exception_handler(RequestValidationError, _unreadable)
    app.add_exception_handler(Refused, _refused)

    @app.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        shown = [name for name in service.models if _tenant(request).may_ask(name)]
        data = [
            {"id": name, "object": "model", "created": service.started, "owned_by": "fedllm"}
            for name in shown
        ]
        return {"object": "list", "data": data}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.page(), media_type=TYPE)

    @app.post("/v1/chat/completions")
    async def chat(body: ChatBody, request: Request) -> Response:
        served = service.model(body.model, request)
        prompt = await _put(_conversation, service, served, body)
        return await _written(service, served, body, [prompt], request, ChatForm(body.model))

    @app.post("/v1/completions")
    async def completions(body: CompletionBody, request: Request) -> Response:
        served = service.model(body.model, request)
        prompts = await _put(_texts, service, served, body)
        return await _written(service, served, body, prompts, request, CompletionForm(body.model))

    @app.post("/v1/embeddings")
    async def embeddings(body: EmbeddingBody, request: Request) -> dict[str, Any]:
        served = service.model(body.model, request)
        embedding = served.usable.embedding
        if embedding is None:
            raise Refused(400, f"{body.model} makes no vectors of texts")
        async with service.computing:
            found, tokens = await run_in_threadpool(embedding.embed, several(body.input))
        service.metrics.tokens.labels(_tenant(request).name, body.model, "read").inc(tokens)
        coded = body.encoding_format == "base64"
        data = [
            {
                "object": "embedding",
                "index": place,
                "embedding": base64.b64encode(row.numpy().tobytes()).decode()
                if coded
                else row.tolist(),
            }
            for place, row in enumerate(found)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": data, "model": body.model, "usage": usage}

    @app.post("/v1/classify")
    async def classify(body: ClassifyBody, request: Request) -> dict[str, Any]:
        served = service.model(body.model, request)
        predicting = served.usable.predicting
        if predicting is None:
            raise Refused(400, f"{body.model} has no labels")
        texts = several(body.input)
        async with service.computing:
            found = await run_in_threadpool(lambda: list(predicting.predict(texts)))
        data = [
            {"index": place, **said.fields(body.top), "tokens_cut": said.cut}
            for place, said in enumerate(found)
        ]
        return {"object": "list", "data": data, "model": body.model}

    return app


async def _unreadable(request: Request, error: Exception) -> Response:
    """Say which field is wrong, and not what it held."""
    told = error.errors() if isinstance(error, RequestValidationError) else []
    where = (
        ".".join(str(part) for part in told[0]["loc"][1:] if isinstance(part, str | int))[:100]
        if told
        else ""
    )
    reason = (
        str(told[0]["msg"]) if told and told[0]["type"] != "json_invalid" else "is not valid JSON"
    )
    return Response(
        failure(400, f"{where or 'the body'}: {reason}", param=where or None),
        400,
        media_type="application/json",
    )


async def _refused(request: Request, error: Exception) -> Response:
    if not isinstance(error, Refused):
        raise error
    return Response(error.body, error.status, error.headers, media_type="application/json")


# --- what is asked ------------------------------------------------------------------------------


async def _put(how: Any, service: Service, served: Served, body: Any) -> Any:
    """Make tokens of what is asked, beside the event loop."""
    if served.lane is None:
        raise Refused(400, f"{served.name} writes no text")
    try:
        return await run_in_threadpool(how, service, served, body)
    except ConfigError as error:
        # Its words name lengths alone.
        raise Refused(400, error.message, "context_length_exceeded") from None


def _most(service: Service, body: Written) -> int:
    return min(body.most or _DEFAULT_TOKENS, service.most_tokens)


def _conversation(service: Service, served: Served, body: ChatBody) -> Prompt:
    turns = [Turn("system" if m.role == "developer" else m.role, m.text) for m in body.messages]
    found = served.usable.conversing().conversation(turns, _longest(served, body, service))
    if found.dropped or found.cut:
        raise ConfigError(
            f"the conversation is longer than the {_longest(served, body, service)} tokens that "
            f"{served.name} reads beside its answer"
        )
    return found


def _texts(service: Service, served: Served, body: CompletionBody) -> list[Prompt]:
    found = [
        served.usable.prompt(text, _most(service, body), raw=True) for text in several(body.prompt)
    ]
    if any(prompt.cut for prompt in found):
        raise ConfigError(
            f"a prompt is longer than the {_longest(served, body, service)} tokens that "
            f"{served.name} reads beside its answer"
        )
    return found


def _longest(served: Served, body: Written, service: Service) -> int:
    return served.usable.room_for_prompt(_most(service, body))


# --- what is written ----------------------------------------------------------------------------


async def _written(
    service: Service,
    served: Served,
    body: Written,
    prompts: Sequence[Prompt],
    request: Request,
    form: Form,
) -> Response:
    talks = isinstance(body, ChatBody)
    how = served.usable.conversing() if talks else None
    sampling = Sampling(_or(body.temperature, 1.0), _or(body.top_p, 1.0), body.seed)
    stops = (*body.stops, *(how.next_turn if how else ()))
    order = Order(
        _tenant(request).name,
        served.name,
        prompts,
        Writing(_most(service, body), stops, sampling),
        how.gap if how else "",
        time.monotonic() + service.limits.time_s,
    )
    if served.lane is None:
        raise Refused(400, f"{served.name} writes no text")
    texts = Texts(order, served.lane, service.guard, service.metrics)
    try:
        texts.submit(service.engine)
    except Busy as busy:
        after = {"retry-after": str(busy.retry_after_s)}
        raise Refused(429, code="busy", headers=after) from None
    if body.stream:
        told = body.stream_options is not None and body.stream_options.include_usage
        return StreamingResponse(texts.streamed(form, told), media_type="text/event-stream")
    try:
        found = await texts.whole(form, lambda: _left(request))
    except Unwritten as error:
        raise Refused(error.status) from None
    return Response(json.dumps(found), media_type="application/json")


async def _left(request: Request) -> None:
    """Wait until whoever asked has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _or(value: float | None, other: float) -> float:
    return other if value is None else value
