"""``fedllm chat``: a conversation with a run's model, or a base model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fedllm.commands import asking, options
from fedllm.errors import FedllmError
from fedllm.visible import visible

if TYPE_CHECKING:
    from fedllm.models.generation import Writing
    from fedllm.serving.conversation import Conversation

_HELP, _RESET, _QUIT = "/help", "/reset", "/quit"
_TOLD = f"{_RESET} forgets the conversation, {_QUIT} ends it, Ctrl-C breaks an answer off"


def chat(
    run: Path = typer.Argument(
        metavar="RUN|ADAPTER|DIR",
        help="The folder of a finished run, its folder adapter, or the folder of a base model.",
    ),
    system: str | None = typer.Option(
        None, metavar="TEXT", help="What the model is told before the conversation."
    ),
    new_tokens: int = asking.NEW_TOKENS,
    temperature: float = typer.Option(
        0.7, min=0.0, metavar="T", help="0 takes the likeliest token each time, 1 draws."
    ),
    top_p: float = asking.TOP_P,
    seed: int | None = asking.SEED,
    stop: list[str] = asking.STOP,
    base: str | None = options.BASE,
    kit: Path | None = asking.KIT,
    device: str | None = asking.DEVICE,
    max_length: int | None = asking.MAX_LENGTH,
) -> None:
    """Talk with a model.

    Answers appear as they are written. Each line is a turn; /reset forgets the conversation, /quit
    or the end of the input ends it, Ctrl-C breaks an answer off, and on a terminal /help says so.
    The template is the run's, or the base model's own. When the conversation grows too long, its
    earliest turns are left out, and it is told how many. Works on a pipe: one question a line, one
    answer each.
    """
    asking.check_model(run)
    writing = asking.writing_of(new_tokens, temperature, top_p, seed, stop)
    found = asking.opened(run, base, device, max_length, kit)
    from fedllm.serving.conversation import Conversation

    talk = Conversation.of(found, system)
    if sys.stdin.isatty():
        asking.tell(_TOLD)
    for question in _questions():
        if question == _QUIT:
            return
        if question == _RESET:
            talk.forget()
            continue
        if question == _HELP and sys.stdin.isatty():
            asking.tell(_TOLD)
            continue
        if question.strip():
            _answer(talk, question, writing)


def _questions() -> Iterator[str]:
    """Yield what people say, a line each."""
    if not sys.stdin.isatty():
        for line in sys.stdin:
            yield line.rstrip("\r\n")
        return
    # Lines can then be edited, and called back.
    import readline  # noqa: F401

    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return


def _answer(talk: Conversation, question: str, writing: Writing) -> None:
    def heard(piece: str) -> None:
        sys.stdout.write(visible(piece, keep="\n\t") if sys.stdout.isatty() else piece)
        sys.stdout.flush()

    try:
        told = talk.say(question, writing, heard)
    except FedllmError as error:
        # The next question may be shorter.
        if not sys.stdin.isatty():
            raise
        asking.tell(str(error))
        return
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
        print()
        asking.tell("broken off; the question and what was answered are forgotten")
        return
    print()
    for one in told:
        asking.tell(one)
