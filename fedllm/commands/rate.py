"""``fedllm rate``: rank a model's answers at the site, and see how far raters agree."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fedllm.commands import asking, options
from fedllm.commands.ratings import compare_raters, export_ratings
from fedllm.errors import ConfigError, InterruptedRunError

if TYPE_CHECKING:
    from fedllm.rating.answers import AnswerFile, Settings
    from fedllm.rating.prompts import Question
    from fedllm.rating.session import Session
    from fedllm.rating.supply import Supply


def rate(
    files: list[str] = typer.Argument(
        metavar="FILE...",
        help="Prompts: JSON Lines, CSV or Parquet with the column prompt, and perhaps context and "
        "id. With --disagreement or --export: what --out wrote, of one or several raters.",
    ),
    run: Path | None = typer.Option(
        None,
        "--model",
        metavar="RUN|ADAPTER|DIR",
        help="The folder of a finished run, its folder adapter, or the folder of a whole model.",
    ),
    out: Path = typer.Option(
        Path("ratings.jsonl"),
        metavar="FILE",
        help="Where the ratings go, line by line; the answers lie beside it. The same file goes on "
        "where it was.",
    ),
    rater: str | None = typer.Option(
        None, metavar="NAME", help="Who rates; the user of this machine when left out."
    ),
    person: str | None = typer.Option(
        None,
        metavar="COLUMN",
        help="Column of FILE that names whom a prompt is about, for runs that protect persons.",
    ),
    answers: int = typer.Option(4, min=2, max=8, metavar="N", help="Answers to each prompt."),
    new_tokens: int = asking.NEW_TOKENS,
    temperature: float = typer.Option(
        1.0, min=0.01, metavar="T", help="1 draws as the model says; less, and answers are alike."
    ),
    top_p: float = asking.TOP_P,
    seed: int = typer.Option(
        0, min=0, metavar="N", help="The same seed samples the same answers, on this machine."
    ),
    stop: list[str] = asking.STOP,
    base: str | None = options.BASE,
    device: str | None = asking.DEVICE,
    max_length: int | None = asking.MAX_LENGTH,
    prepare: bool = typer.Option(
        False, "--prepare", help="Sample all answers, and ask nobody; rating then loads no model."
    ),
    browser: bool = typer.Option(
        False, "--browser", help="Rank in a browser of this machine instead of on the terminal."
    ),
    port: int = typer.Option(
        0, min=0, max=65535, help="Port of loopback with --browser; 0 takes a free one."
    ),
    disagreement: bool = typer.Option(
        False, "--disagreement", help="Show how far the raters of FILE... agree, and rate nothing."
    ),
    export: Path | None = typer.Option(
        None, metavar="FILE", help="Write the ratings of FILE... as a preference file of a run."
    ),
    consensus: bool = typer.Option(
        False, "--consensus", help="With --export: one ranking a prompt, by the raters' mean ranks."
    ),
    json_output: bool = options.JSON,
) -> None:
    """Rank a model's answers to a site's own prompts.

    Samples answers to each prompt and shows them in random order. On the terminal, or in a browser
    on loopback, the rater writes their numbers from the best to the worst (2 1=3 4), skips, goes
    back and undoes. Each rating is on disk before the next prompt is shown. Nothing leaves the
    machine. With --disagreement it shows how far several raters agree, with --export it writes the
    file that a run with preferences reads.
    """
    reading = disagreement or export is not None
    if (
        reading == (run is not None)
        or (disagreement and export is not None)
        or (json_output and not reading)
    ):
        raise ConfigError(
            "it is not clear what is to be done",
            "give --model RUN to rate; or one of --disagreement and --export FILE, perhaps with "
            "--json, for ratings that are there",
        )
    if consensus and export is None:
        raise ConfigError("--consensus is for --export alone", "add --export FILE, or leave it out")
    if export is not None:
        export_ratings(files, export, consensus, json_output)
    elif disagreement:
        compare_raters(files, json_output)
    elif run is not None:
        if len(files) != 1:
            raise ConfigError(
                f"{len(files)} files of prompts were given", "name one; a pattern in quotes is one"
            )
        if not prepare and not browser:
            _require_terminal()
        from fedllm.processes import keep_memory_private
        from fedllm.rating.answers import Settings
        from fedllm.rating.prompts import read_questions
        from fedllm.rating.store import checked_name

        keep_memory_private()
        name = checked_name(_user() if rater is None else rater)
        settings = Settings(
            answers=answers,
            temperature=temperature,
            top_p=_share(top_p),
            seed=seed,
            new_tokens=new_tokens,
            stops=tuple(stop),
            max_length=max_length,
        )
        questions = read_questions(files[0], person)
        model = _Model(run, base, device, max_length)
        if prepare:
            _prepare(questions, model, settings, out)
        else:
            with _session(questions, model, settings, out, name) as session:
                _in_browser(session, port) if browser else _on_terminal(session)


class _Model:
    """Which model is asked; loaded only where answers are missing."""

    def __init__(
        self, location: Path, base: str | None, device: str | None, max_length: int | None
    ) -> None:
        self._location, self._loading = location, (base, device, max_length, None)

    def supply(self, questions: Sequence[Question], file: AnswerFile, settings: Settings) -> Supply:
        """Return what hands out answers."""
        from fedllm.rating.supply import Supply

        if not file.missing(questions):
            return Supply(file, questions)
        from fedllm.rating.sampling import Sampler

        sampler = Sampler(asking.opened(self._location, *self._loading), settings)
        asking.tell_cut(sampler.check(file.missing(questions)), "prompts", sampler.room)
        return Supply(file, questions, sampler.draw)

    def answers(self, out: Path, settings: Settings) -> AnswerFile:
        """Return the answers that lie beside the ratings."""
        from fedllm.rating.answers import AnswerFile, Origin, answers_beside
        from fedllm.rating.which import model_at

        origin = Origin(model=model_at(self._location), sampling=settings)
        return AnswerFile(answers_beside(out), origin)


def _prepare(questions: Sequence[Question], model: _Model, settings: Settings, out: Path) -> None:
    with _alone(out):
        file = model.answers(out, settings)
        with (
            model.supply(questions, file, settings) as supply,
            asking.working("sampling answers") as status,
        ):
            update = getattr(status, "update", lambda words: None)
            count = len(questions)
            supply.finish(lambda left: update(f"sampled {count - left} of {count} prompts"))
        poor = sum(not (found := file.get(one)) or not found.can_be_ranked for one in questions)
    print(f"answers to {len(questions)} prompts are there; now rate: the same without --prepare")
    if poor:
        print(f"{poor} of them have no two different answers and are passed over")


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keep other sessions from the files of this one."""
    from fedllm.locks import exclusive
    from fedllm.rating.answers import answers_beside
    from fedllm.rating.lines import PrivateLines

    # Files of one stem, such as r.jsonl and r.txt, have their answers in one place.
    beside = answers_beside(out)
    for path in (out, beside):
        PrivateLines(path).prepare()
    other = "wait until that ends, or give each rater a file with --out"
    with (
        exclusive(out, f"somebody rates into {out} already", other),
        exclusive(beside, f"somebody rates with the answers of {beside} already", other),
    ):
        yield


@contextmanager
def _session(
    questions: Sequence[Question], model: _Model, settings: Settings, out: Path, name: str
) -> Iterator[Session]:
    from fedllm.rating.session import Session
    from fedllm.rating.store import RatingLog

    with _alone(out):
        file = model.answers(out, settings)
        log = RatingLog(out, name, file.origin, questions)
        with model.supply(questions, file, settings) as supply:
            yield Session(questions, log, supply, name, settings.seed)


def _on_terminal(session: Session) -> None:
    # Lines can then be edited.
    import readline  # noqa: F401

    from rich.console import Console

    from fedllm.rating.terminal import TerminalRating

    try:
        TerminalRating(session, Console(), lambda: input("> ")).run()
    except KeyboardInterrupt:
        print()
        raise InterruptedRunError(
            f"interrupted: {session.progress()}; all of it is kept",
            "repeat the command to go on",
        ) from None


def _in_browser(session: Session, port: int) -> None:
    from fedllm.processes import say, stop_on_signals
    from fedllm.rating.browser import RatingPage
    from fedllm.serving.server import Address, listening_socket, serve

    stop = stop_on_signals()
    page = RatingPage(session, stop, say)
    address = Address("127.0.0.1", port)
    # Not into the log's form: it is an address to open.
    serve(
        page,
        listening_socket(address),
        None,
        stop,
        lambda own: print(f"open http://127.0.0.1:{own}{page.path}", flush=True),
        5.0,
    )
    print(f"{session.progress()}; all of it is kept")
    raise typer.Exit(stop.exit_code)


def _require_terminal() -> None:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError(
            "ranking needs a terminal, and standard input or output is none",
            "run it on a terminal, or give --browser; --prepare samples the answers without one",
        )


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        raise ConfigError("this machine has no name for its user", "give --rater NAME") from None


def _share(top_p: float) -> float:
    if not 0 < top_p <= 1:
        raise ConfigError(
            f"--top-p {top_p} is not above 0 and at most 1", "give 1 to draw from all tokens"
        )
    return top_p
