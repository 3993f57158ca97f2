"""How answers are told: as OpenAI's API tells them, whole and in pieces."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypedDict


class CachedTokens(TypedDict):
    """Of a prompt's tokens, those that were not read again."""

    cached_tokens: int


class Usage(TypedDict):
    """What an answer took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class Form(ABC):
    """How an answer is told.

    Parameters
    ----------
    model : str
        By its name.
    """

    kind: str
    whole_object: str
    part_object: str

    def __init__(self, model: str) -> None:
        name = f"{self.kind}-{uuid.uuid4().hex}"
        self._about = {"id": name, "created": int(time.time()), "model": model}

    def whole(self, texts: Sequence[tuple[str, str]], usage: Usage) -> dict[str, Any]:
        """Return the whole answer: each text, and why it ended."""
        choices = [self._choice(n, text, why) for n, (text, why) in enumerate(texts)]
        return {**self._about, "object": self.whole_object, "choices": choices, "usage": usage}

    def part(self, number: int, piece: str, why: str | None, first: bool) -> dict[str, Any]:
        """Return a piece of a stream; the ``first`` of its text, or not."""
        choice = self._piece(number, piece, why, first)
        return {**self._about, "object": self.part_object, "choices": [choice]}

    def last(self, usage: Usage) -> dict[str, Any]:
        """Return what a stream took, at its end."""
        return {**self._about, "object": self.part_object, "choices": [], "usage": usage}

    @abstractmethod
    def _choice(self, number: int, text: str, why: str) -> dict[str, Any]: ...

    @abstractmethod
    def _piece(self, number: int, piece: str, why: str | None, first: bool) -> dict[str, Any]: ...


class ChatForm(Form):
    """``/v1/chat/completions``."""

    kind, whole_object, part_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def _choice(self, number: int, text: str, why: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": number, "message": message, "finish_reason": why, "logprobs": None}

    def _piece(self, number: int, piece: str, why: str | None, first: bool) -> dict[str, Any]:
        delta = {"role": "assistant", "content": piece} if first else {"content": piece}
        told = delta if first or piece else {}
        return {"index": number, "delta": told, "finish_reason": why, "logprobs": None}


class CompletionForm(Form):
    """``/v1/completions``."""

    kind, whole_object, part_object = "cmpl", "text_completion", "text_completion"

    def _choice(self, number: int, text: str, why: str) -> dict[str, Any]:
        return {"index": number, "text": text, "finish_reason": why, "logprobs": None}

    def _piece(self, number: int, piece: str, why: str | None, first: bool) -> dict[str, Any]:
        return self._choice(number, piece, why or "") | {"finish_reason": why}
