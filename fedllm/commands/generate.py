"""``fedllm generate``: complete prompts with a run's model, or a base model."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fedllm.commands import asking, options
from fedllm.visible import visible

if TYPE_CHECKING:
    from fedllm.data.asked import Asked
    from fedllm.models.generation import Completion, Generator, Writing
    from fedllm.tasks.prompting import Prompt


def generate(
    run: Path = typer.Argument(
        metavar="RUN|ADAPTER|DIR",
        help="The folder of a finished run, its folder adapter, or the folder of a base model.",
    ),
    file: str | None = typer.Argument(
        None,
        metavar="[FILE]",
        help="Prompts: JSON Lines, CSV or Parquet with the run's column (data.prompt or "
        "data.text; a base model's: prompt), or plain text, one a line; - reads standard input.",
    ),
    prompt: list[str] = typer.Option([], "--prompt", metavar="TEXT", help="A prompt; repeatable."),
    new_tokens: int = asking.NEW_TOKENS,
    temperature: float = typer.Option(
        0.0, min=0.0, metavar="T", help="0 takes the likeliest token each time, 1 draws."
    ),
    top_p: float = asking.TOP_P,
    seed: int | None = asking.SEED,
    stop: list[str] = asking.STOP,
    raw: bool = typer.Option(
        False, "--raw", help="Go on with the prompt as it stands, without the model's template."
    ),
    rows: int = typer.Option(16, "--batch", min=1, metavar="N", help="Prompts completed at once."),
    base: str | None = options.BASE,
    kit: Path | None = asking.KIT,
    device: str | None = asking.DEVICE,
    max_length: int | None = asking.MAX_LENGTH,
    out: Path | None = asking.OUT,
    json_output: bool = asking.LINES,
) -> None:
    """Complete prompts.

    With a run that learned to answer, or a base model that brings a template for conversations,
    the template stands around each prompt, as in training. One prompt's answer appears on a
    terminal as it is written; otherwise JSON Lines are printed when all answers are there, in the
    order of the prompts, without the prompts themselves. A row's field id is handed on.
    """
    asking.check_asked(prompt, file, "--prompt")
    asking.check_out(out)
    asking.check_model(run)
    writing = asking.writing_of(new_tokens, temperature, top_p, seed, stop)
    found = asking.opened(run, base, device, max_length, kit)
    generator = found.require_generator()
    asked = asking.asked_texts(prompt, file, found.column)
    prompts = [found.prompt(one.text, new_tokens, raw) for one in asked]
    gap = "" if raw or found.prompting is None else found.prompting.gap
    asking.tell_cut([one.cut for one in prompts], "prompts", found.room_for_prompt(new_tokens))
    if len(asked) == 1 and out is None and not json_output and sys.stdout.isatty():
        _stream(generator, prompts[0], writing, gap)
        return
    from fedllm.serving.lines import write_lines

    found_texts = _written(generator, prompts, writing, rows)
    write_lines(_lines(asked, prompts, found_texts, writing, gap), out)


def _stream(generator: Generator, prompt: Prompt, writing: Writing, gap: str) -> None:
    from fedllm.serving.conversation import Answer

    def heard(piece: str) -> None:
        sys.stdout.write(visible(piece, keep="\n\t"))
        sys.stdout.flush()

    answer = Answer(gap, heard)
    (done,) = generator.write([prompt.ids], writing, lambda _, piece: answer.hear(piece))
    print()
    if done.finish == "length":
        asking.tell(f"ended after {len(done.tokens)} tokens (--max-new-tokens)")


def _written(
    generator: Generator, prompts: Sequence[Prompt], writing: Writing, rows: int
) -> list[Completion]:
    done: dict[int, Completion] = {}
    with asking.working(f"completing {len(prompts)} prompts") as status:
        for number, completion in generator.each([p.ids for p in prompts], writing, rows=rows):
            done[number] = completion
            update = getattr(status, "update", None)
            if update is not None:
                update(f"completed {len(done)} of {len(prompts)} prompts")
    return [done[number] for number in range(len(prompts))]


def _lines(
    asked: Sequence[Asked],
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    writing: Writing,
    gap: str,
) -> Iterator[dict[str, Any]]:
    seed = writing.sampling.seed
    for one, prompt, done in zip(asked, prompts, completions, strict=True):
        yield {
            "row": one.row,
            **({} if one.key is None else {"id": one.key}),
            "response": done.text.removeprefix(gap),
            "finish_reason": done.finish,
            "prompt_tokens": len(prompt.ids),
            "tokens_cut": prompt.cut,
            "response_tokens": len(done.tokens),
            **({} if seed is None else {"seed": seed}),
        }
