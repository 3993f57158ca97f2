"""``fedllm predict``: label texts with a run's model."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fedllm.commands import asking, options
from fedllm.errors import ConfigError
from fedllm.visible import visible
from fedllm.words import safe, table

if TYPE_CHECKING:
    from fedllm.data.asked import Asked
    from fedllm.serving.usable import Usable
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

    For runs that learned preferences (objective "reward" or "selector") FILE has rows with a prompt
    and a list of answers; each answer gets a score and a rank, 1 for the best.
    """
    asking.check_asked(text, file, "--text")
    asking.check_out(out)
    found = asking.opened(run, base, device, max_length, kit)
    if found.judging is not None:
        _judge(found, file, out, json_output)
        return
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


def _judge(found: Usable, file: str | None, out: Path | None, json_output: bool) -> None:
    from fedllm.serving.lines import write_lines
    from fedllm.tasks import task_of
    from fedllm.tasks.preference_asking import asked_of, ranks_of, read_answers

    released, judging = found.released, found.judging
    if file is None or file == "-" or released is None or judging is None:
        raise ConfigError(
            f"{found.what} judges answers, of which one text has none",
            "give a FILE (JSON Lines, CSV or Parquet) with a prompt and a list of answers in a row",
        )
    data = released.config.data
    records = read_answers(file, task_of(released.config).columns(data), data)
    with asking.working("judging"):
        scores = judging.judge([asked_of(record) for record in records])
    rows: list[dict[str, Any]] = []
    for record, own in zip(records, scores, strict=True):
        key = {"id": record.values["id"]} if "id" in record.values else {}
        rows.append({"row": record.row, **key, "scores": own, "ranks": ranks_of(own)})
    if json_output or out is not None or not sys.stdout.isatty():
        write_lines(iter(rows), out)
        return
    from rich.console import Console

    shown = table("Row", "Answer", "Score", "Rank")
    for record, row in zip(records, rows, strict=True):
        for text, score, rank in zip(asked_of(record)[2], row["scores"], row["ranks"], strict=True):
            shown.add_row(str(row["row"]), safe(_short(text)), f"{score:.3f}", str(rank))
    Console().print(shown)


def _line(asked: Asked, said: Prediction, top: int) -> dict[str, Any]:
    key = {} if asked.key is None else {"id": asked.key}
    return {"row": asked.row, **key, **said.fields(top), "tokens_cut": said.cut}


def _print(rows: Sequence[tuple[Asked, Prediction]], top: int) -> None:
    from rich.console import Console

    shown = table("Row", "Text", "Found")
    for asked, said in rows:
        shown.add_row(str(asked.row), safe(_short(asked.text)), safe(visible(said.words(top))))
    Console().print(shown)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN_LETTERS else f"{text[:_SHOWN_LETTERS]} ..."
