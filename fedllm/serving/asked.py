"""What requests may ask for, in the words of OpenAI's API as far as it is served."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_MOST_TEXTS, _MOST_STOPS, _MOST_OF_A_STOP = 64, 8, 64
Stop = Annotated[str, Field(min_length=1, max_length=_MOST_OF_A_STOP)]
Text = Annotated[str, Field(min_length=1)]
Texts = Text | Annotated[list[Text], Field(min_length=1, max_length=_MOST_TEXTS)]
# Changes no answer, whatever it holds.
_NEVER_CHANGES = frozenset(
    (
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "parallel_tool_calls",
    )
)
# Changes none with these values. Whatever else a request holds might.
_NOT_SERVED: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0, 0.0),
    "frequency_penalty": (None, 0, 0.0),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "top_k": (None, 0, -1),
    "min_p": (None, 0, 0.0),
    "repetition_penalty": (None, 1, 1.0),
    "min_tokens": (None, 0),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "dimensions": (None,),
}


class NotServedError(ValueError):
    """A field asks for what would change the answer, and is not served.

    Attributes
    ----------
    field : str
        Its name; empty where that is none that a field has.
    """

    def __init__(self, field: str) -> None:
        super().__init__("is not served")
        self.field = field


class Body(BaseModel):
    """A request; what it says beside what is known must change nothing."""

    model_config = ConfigDict(extra="allow", hide_input_in_errors=True)

    model: Annotated[str, Field(min_length=1, max_length=200)]

    @model_validator(mode="after")
    def _nothing_is_left_out_silently(self) -> Self:
        _refuse_others(self.model_extra or {})
        return self


def _refuse_others(more: Mapping[str, Any]) -> None:
    for name, value in more.items():
        # 0 and false are equal, and ask for different things.
        same = (one for one in _NOT_SERVED.get(name, (None,)) if type(one) is type(value))
        if name not in _NEVER_CHANGES and value not in same:
            raise NotServedError(name if _NAME.fullmatch(name) else "")


class StreamOptions(BaseModel):
    """How a stream is told."""

    include_usage: bool = False


class Written(Body):
    """A request for text."""

    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=_MOST_STOPS)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end what is written."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def most(self) -> int | None:
        """Tokens to write at most."""
        return self.max_tokens


class Part(BaseModel):
    """A part of a message; text alone is served."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One turn; what it says beside its text must change nothing."""

    model_config = ConfigDict(extra="allow", hide_input_in_errors=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    @model_validator(mode="after")
    def _calls_nothing(self) -> Self:
        for name in ("tool_calls", "function_call", "audio", "prefix"):
            if (self.model_extra or {}).get(name):
                raise NotServedError(name)
        return self

    @property
    def text(self) -> str:
        """What is said."""
        return (
            self.content
            if isinstance(self.content, str)
            else "".join(part.text for part in self.content)
        )


class ChatBody(Written):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    @property
    def most(self) -> int | None:
        """Tokens to write at most."""
        return self.max_completion_tokens or self.max_tokens


class CompletionBody(Written):
    """``POST /v1/completions``."""

    prompt: Texts


class EmbeddingBody(Body):
    """``POST /v1/embeddings``."""

    input: Texts
    encoding_format: Literal["float", "base64"] = "float"


class ClassifyBody(Body):
    """``POST /v1/classify``, which OpenAI's API has not."""

    input: Texts
    top: Annotated[int, Field(ge=0)] = 3


# Every name that a place in a request can have.
FIELDS = frozenset(
    field
    for body in (
        ChatBody,
        CompletionBody,
        EmbeddingBody,
        ClassifyBody,
        Message,
        Part,
        StreamOptions,
    )
    for field in body.model_fields
)


def several(texts: str | list[str]) -> list[str]:
    """Return one or several texts as several."""
    return [texts] if isinstance(texts, str) else texts
