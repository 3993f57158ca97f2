"""``fedllm predict``: label texts with a run's model."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fedllm.commands import asking, options
from fedllm.visible import visible
from fedllm.words import safe, table

if TYPE_CHECKING:
    from fedllm.data.asked import Asked
    from fedllm.tasks.predicting import Prediction

_SHOWN_LETTERS = 60


def predict(
    run: Path = typer.Argument(
        metavar="RUN|ADAPTER", help="The folder of a finished run, or its folder adapter."
    ),
    file: str | None = typer.Argument(
        None,
        metavar="[FILE]",
        help="Texts: JSON Lines, CSV or Parquet with the run's column (data.text), or plain "
        "text, one a line; - reads standard input.",
    ),
    text: list[str] = typer.Option([], "--text", help="A text; may be repeated."),
    top: int = typer.Option(
        3, min=0, metavar="N", help="Show so many labels of each text, the likeliest; 0 for all."
    ),
    base: str | None = options.BASE,
    kit: Path | None = asking.KIT,
    device: str | None = asking.DEVICE,
    max_length: int | None = asking.MAX_LENGTH,
    out: Path | None = asking.OUT,
    json_output: bool = asking.LINES,
) -> None:
    """Label texts with the model of a run.

    For runs that have labels: each text gets its label with probabilities, or the labelled spans
    in it. Prints a table on a terminal; otherwise JSON Lines, in the order of the texts, without
    the texts themselves. A row's field id is handed on. Texts that are too long are cut as in
    training, and it is told how many were. Probabilities are the model's own, and not calibrated.
    """
    asking.check_asked(text, file, "--text")
    found = asking.opened(run, base, device, max_length, kit)
    predicting = found.require_predicting()
    asked = asking.asked_texts(text, file, found.column)
    cut: list[int] = []

    def predicted() -> Iterator[tuple[Asked, Prediction]]:
        for one, said in zip(asked, predicting.predict([one.text for one in asked]), strict=True):
            cut.append(said.cut)
            yield one, said

    if json_output or out is not None or not sys.stdout.isatty():
        from fedllm.serving.lines import write_lines

        write_lines((_line(one, said, top) for one, said in predicted()), out)
    else:
        with asking.working("labelling"):
            rows = list(predicted())
        _print(rows, top)
    asking.tell_cut(cut, "texts", found.max_length)


def _line(asked: Asked, said: Prediction, top: int) -> dict[str, Any]:
    key = {} if asked.key is None else {"id": asked.key}
    return {"row": asked.row, **key, **said.fields(top), "tokens_cut": said.cut}


def _print(rows: Sequence[tuple[Asked, Prediction]], top: int) -> None:
    from rich.console import Console

    shown = table("Row", "Text", "Found")
    for asked, said in rows:
        text = " ".join(asked.text.split())
        text = text if len(text) <= _SHOWN_LETTERS else f"{text[:_SHOWN_LETTERS]} ..."
        shown.add_row(str(asked.row), safe(text), safe(visible(said.words(top))))
    Console().print(shown)
