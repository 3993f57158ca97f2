"""The service: FastAPI's routes over the engine, in the form of OpenAI's API."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

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
from fedllm.serving.unreadable import told_of
from fedllm.serving.writing import Order, Texts, Unwritten
from fedllm.tasks.prompting import PlainPrompting, Prompt

_DEFAULT_TOKENS = 256
Found = TypeVar("Found")


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
    # One at a time, also where nobody waits for it any more: what labels and embeds uses all
    # cores as it is.
    computing: Executor = field(default_factory=lambda: ThreadPoolExecutor(1, "computing"))

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
    app.add_exception_handler(HTTPException, _unreadable)
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
    async def metrics(request: Request) -> Response:
        return Response(service.metrics.page(_tenant(request)), media_type=TYPE)

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
        texts = several(body.input)
        ((found, tokens),) = await _computed(service, request, lambda: [embedding.embed(texts)])
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
        found = await _computed(service, request, lambda: predicting.predict(texts))
        data = [
            {"index": place, **said.fields(body.top), "tokens_cut": said.cut}
            for place, said in enumerate(found)
        ]
        return {"object": "list", "data": data, "model": body.model}

    return app


async def _unreadable(request: Request, error: Exception) -> Response:
    """Say which field is wrong, and not what it held."""
    told = error.errors() if isinstance(error, RequestValidationError) else []
    words, field = told_of(told)
    return Response(failure(400, words, param=field), 400, media_type="application/json")


async def _refused(request: Request, error: Exception) -> Response:
    if not isinstance(error, Refused):
        raise error
    return Response(error.body, error.status, error.headers, media_type="application/json")


async def _computed(
    service: Service, request: Request, work: Callable[[], Iterable[Found]]
) -> list[Found]:
    """Return what is found; no more is looked for when nobody waits for it."""
    gone = threading.Event()

    def found() -> list[Found]:
        kept: list[Found] = []
        if not gone.is_set():
            for one in work():
                kept.append(one)
                if gone.is_set():
                    break
        return kept

    working = asyncio.get_running_loop().run_in_executor(service.computing, found)
    leaving = asyncio.create_task(_left(request))
    waited: set[asyncio.Future[Any]] = {working, leaving}
    try:
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Refused(499)
        return working.result()
    finally:
        gone.set()
        leaving.cancel()
        if not working.cancel() and not working.cancelled():
            # An error that nobody asks for is shown, with its words, by the event loop.
            working.exception()


# --- what is asked ------------------------------------------------------------------------------


async def _put(how: Any, service: Service, served: Served, body: Any) -> Any:
    """Make tokens of what is asked, beside the event loop."""
    if served.lane is None:
        raise Refused(400, f"{served.name} writes no text")
    try:
        return await run_in_threadpool(how, service, served, body)
    except ConfigError as error:
        # Of the turns or the template; its words quote neither.
        raise Refused(400, error.message) from None


def _most(service: Service, body: Written) -> int:
    return min(body.most or _DEFAULT_TOKENS, service.most_tokens)


def _conversation(service: Service, served: Served, body: ChatBody) -> Prompt:
    turns = [Turn("system" if m.role == "developer" else m.role, m.text) for m in body.messages]
    found = served.usable.conversing().whole_conversation(turns)
    _require_fitting(found, "the conversation", service, served, body)
    return found


def _texts(service: Service, served: Served, body: CompletionBody) -> list[Prompt]:
    most, texts = service.engine.most_texts, several(body.prompt)
    if len(texts) > most:
        raise Refused(400, f"{len(texts)} texts in one request; this service takes {most}")
    how, found = PlainPrompting(served.usable.require_generator().tokenizer), []
    for text in texts:
        found.append(how.prompt(text, None))
        _require_fitting(found[-1], "a prompt", service, served, body)
    return found


def _require_fitting(
    prompt: Prompt, what: str, service: Service, served: Served, body: Written
) -> None:
    if not prompt.ids:
        raise Refused(400, f"{what} has no tokens for {served.name}: nothing to go on with")
    most = served.usable.room_for_prompt(_most(service, body))
    if len(prompt.ids) > most:
        raise Refused(
            400,
            f"{what} is longer than the {most} tokens that {served.name} reads beside its answer",
            "context_length_exceeded",
        )


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
    if not service.engine.is_alive:
        raise Refused(503)
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
