"""Ranking on a terminal: a prompt, its answers, and a line of what the rater says."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.panel import Panel
from rich.rule import Rule
from rich.text import Text

from fedllm.errors import ConfigError
from fedllm.rating.rankings import RankingError
from fedllm.rating.session import HELP, QUIT, Item, Session
from fedllm.visible import visible

NARROWEST = 40
_PATIENCE_S = 0.5
_HELP_WORDS = ("?", "h", "help")


class TerminalRating:
    """Asks one rater.

    Parameters
    ----------
    session : Session
        Where the rater is.
    console : Console
        The terminal.
    ask : callable
        Returns the next line that is typed; raises EOFError at the end of the input.
    """

    def __init__(self, session: Session, console: Console, ask: Callable[[], str]) -> None:
        self._session, self._console, self._ask = session, console, ask

    def run(self) -> None:
        """Ask until the rater leaves.

        Raises
        ------
        ConfigError
            If the terminal is too narrow to begin with.
        FedllmError
            If answers cannot be sampled, or a rating cannot be kept.
        """
        if self._console.width < NARROWEST:
            raise ConfigError(
                f"the terminal has {self._console.width} columns; answers need {NARROWEST}",
                "make it wider, or rank in a browser (--browser)",
            )
        self._say(HELP)
        while True:
            item = self._next()
            self._show(item)
            if not self._heard(item):
                self._say(f"{self._session.progress()}; all of it is kept")
                return

    def _next(self) -> Item | None:
        """Wait for the answers to the next prompt; None at the end."""
        item = self._session.item()
        if item is None and not self._session.finished:
            with self._console.status("the model writes answers"):
                while item is None and not self._session.finished:
                    item = self._session.item(_PATIENCE_S)
        return item

    def _heard(self, item: Item | None) -> bool:
        """Obey one line; ask again until it can be; False when the rater leaves."""
        while True:
            try:
                words = self._ask()
            except EOFError:
                self._console.print()
                return False
            if words.strip().lower() == QUIT:
                return False
            if words.strip().lower() in _HELP_WORDS:
                self._say(HELP)
                continue
            try:
                notice = self._session.obey(words, item)
            except RankingError as error:
                notice = str(error)
            if not notice:
                return True
            self._say(notice)

    def _show(self, item: Item | None) -> None:
        console = self._console
        console.print()
        if item is None:
            console.print(Rule("the end"))
            self._say(f"{self._session.progress()}: b back, u undo, q quit")
            return
        console.print(Rule(f"prompt {item.number} of {item.count}"))
        self._say(self._session.progress())
        if item.question.context:
            console.print(_panel(item.question.context, "context"))
        console.print(_panel(item.question.prompt, "prompt"))
        if item.drawn.tokens_cut:
            self._say(f"the model did not read the first {item.drawn.tokens_cut} tokens of it")
        for number, answer in enumerate(item.answers, 1):
            ends = ", which was to go on (--max-new-tokens)" if item.unfinished[number - 1] else ""
            console.print(_panel(answer, f"{number}{ends}"))
        if item.said:
            self._say(f"you said: {item.said}")

    def _say(self, words: str) -> None:
        self._console.print(Text(words, style="dim"))


def _panel(text: str, title: str) -> Panel:
    # As Text, so that nothing in it is read as markup.
    return Panel(Text(visible(text, keep="\n\t")), title=title, title_align="left")
