"""Ranking on a terminal, without one: what is shown, and what is typed."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from support.rating import QUESTIONS, answers_to, lines, session

from fedllm.errors import ConfigError
from fedllm.rating.answers import Drawn
from fedllm.rating.page import Page
from fedllm.rating.prompts import Question
from fedllm.rating.terminal import TerminalRating


def typed(own, *words, width=80):
    """What a terminal showed a rater who types this and leaves by the end of the input."""
    left = iter(words)

    def ask():
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    shown = io.StringIO()
    TerminalRating(own, Console(file=shown, width=width), ask).run()
    return shown.getvalue()


def test_a_rater_ranks_and_leaves(tmp_path):
    with session(tmp_path) as own:
        shown = typed(own, "2 1=3", "1 2", "s", "b", "q", "never read")
    for text in ("A child of two.", "What is measles?", "prompt 1 of 3", "answer 2"):
        assert text in shown
    assert "3 is missing: rank all 3 answers" in shown
    assert "you said: s" in shown
    assert "1 of 3 ranked, 1 skipped; all of it is kept" in shown
    # Nothing says in which order answers were sampled, nor by whom.
    assert "run" not in shown.replace("prompt", "")
    assert [line["state"] for line in lines(tmp_path / "ratings.jsonl")] == ["ranked", "skipped"]


def test_the_end_is_not_the_end(tmp_path):
    with session(tmp_path) as own:
        shown = typed(own, "1 2 3", "1 2 3", "?", "1 2 3", "1 2 3", "b", "3 2 1", "u")
    assert "the end" in shown
    assert "nothing to rank here" in shown
    assert shown.count("the numbers from the best answer") == 2
    assert [line["ranks"] for line in lines(tmp_path / "ratings.jsonl")].count([]) == 0
    assert len(lines(tmp_path / "ratings.jsonl")) == 5


def test_markup_and_escapes_are_shown_and_not_obeyed(tmp_path):
    question = Question(1, "[bold]p[/bold] \x1b[2J \u202e!")
    with session(tmp_path, questions=[question]) as own:
        shown = typed(own)
    assert "[bold]p[/bold] \\x1b[2J \\u202e!" in shown
    assert "\x1b" not in shown


def test_a_narrow_terminal_is_told_at_once(tmp_path):
    with session(tmp_path) as own, pytest.raises(ConfigError, match="39 columns"):
        typed(own, width=39)
    with session(tmp_path) as own:
        assert answers_to(QUESTIONS[0]).texts[0] in typed(own, width=40)


def test_an_answer_that_was_to_go_on_is_marked(tmp_path):
    """Under the number under which it is shown."""

    def sampling(question, given_up):
        return Drawn(("first", "second", "third"), 0, (1,))

    with session(tmp_path, questions=[QUESTIONS[0]], sampling=sampling) as own:
        item = own.item(30)
        shown = typed(own)
        html = Page("/", "", item).html()[0].decode()
    number = item.answers.index("second") + 1
    assert shown.count("to go on") == 1
    assert f"{number}, which was to go on (--max-new-tokens)" in shown
    part = html.partition(f'id="answer-{number}"')[2].partition("</article>")[0]
    assert "It was to go on" in part
    assert html.count("It was to go on") == 1
