"""One rater's way: on, back, undone, and on again another day."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.rating import QUESTIONS, answers_to, lines, session

from fedllm.rating.answers import Drawn
from fedllm.rating.rankings import RankingError
from fedllm.rating.store import latest, read_ratings


def said(tmp_path):
    return {one.prompt: one for one in latest(read_ratings([tmp_path / "ratings.jsonl"]))}


def test_what_is_typed_is_of_what_is_shown(tmp_path):
    with session(tmp_path) as own:
        item = own.item()
        assert sorted(item.answers) == sorted(answers_to(QUESTIONS[0]).texts)
        own.obey("2 1=3", item)
    (found,) = said(tmp_path).values()
    by_text = dict(zip(found.answers, found.ranks, strict=True))
    assert [by_text[text] for text in item.answers] == [2, 1, 2]


def test_the_order_on_the_screen_is_the_raters_own_and_stays(tmp_path):
    def orders(name):
        found = []
        with session(tmp_path, name) as own:
            while (item := own.item()) is not None:
                found.append(item.shown)
                own.obey("s", item)
        return found

    with session(tmp_path, "ann") as own:
        first = own.item().shown
    assert orders("ann")[0] == first
    many = {order for name in "bcdefghij" for order in orders(name)}
    # All six of three answers come up among 27.
    assert len(many) == 6


def test_a_session_goes_on_where_it_was(tmp_path):
    with session(tmp_path) as own:
        own.obey("1 2 3", own.item())
        own.obey("s", own.item())
    with session(tmp_path) as own:
        assert own.item().question == QUESTIONS[2]
        assert own.progress() == "1 of 3 ranked, 1 skipped"
        own.obey("3 2 1", own.item())
        assert own.finished
        assert own.item() is None
    with session(tmp_path, "bob") as own:
        assert own.item().question == QUESTIONS[0]


def test_back_shows_what_was_said_and_changes_nothing(tmp_path):
    with session(tmp_path) as own:
        own.obey("2 1=3", own.item())
        own.obey("s", own.item())
        own.obey("b", own.item())
        assert own.item().said == "s"
        own.obey("b", own.item())
        assert own.item().said == "2 1=3"
        assert "no prompt before" in own.obey("b", own.item())
        assert len(lines(tmp_path / "ratings.jsonl")) == 2
        own.obey("", own.item())
        assert own.item().question == QUESTIONS[1]
        own.obey("b", own.item())
        own.obey("1 2 3", own.item())
        # On to the next of which nothing was said.
        assert own.item().question == QUESTIONS[2]
        with pytest.raises(RankingError):
            own.obey("", own.item())


def test_undo_takes_back_one_after_the_other(tmp_path):
    with session(tmp_path) as own:
        own.obey("1 2 3", own.item())
        own.obey("2 1 3", own.item())
        own.obey("b", own.item())
        own.obey("3 1 2", own.item())
        assert own.obey("u", own.item()) == ""
        assert own.item().question == QUESTIONS[1]
        assert own.item().said == "2 1 3"
        own.obey("u", own.item())
        assert own.item().said == ""
        own.obey("u", own.item())
        assert own.item().question == QUESTIONS[0]
        assert own.item().said == ""
        assert "nothing was said" in own.obey("u", own.item())
    assert said(tmp_path) == {}
    # What was taken back stays in the log.
    assert len(lines(tmp_path / "ratings.jsonl")) == 6


def test_answers_that_were_lost_and_sampled_otherwise_are_new(tmp_path):
    with session(tmp_path) as own:
        own.obey("1 2 3", own.item())
    (tmp_path / "ratings.answers.jsonl").unlink()

    def other(question, given_up):
        return Drawn(("x", "y", "z"))

    with session(tmp_path, sampling=other) as own:
        own.obey("b", own.item(30))
        item = own.item(30)
        assert (item.question, item.said) == (QUESTIONS[0], "")
        own.obey("3 2 1", item)
        own.obey("u", own.item(30))
    # What counts again is of the answers that it was said of.
    assert said(tmp_path)[QUESTIONS[0].prompt].answers == answers_to(QUESTIONS[0]).texts


def test_from_the_end_one_can_go_back(tmp_path):
    with session(tmp_path) as own:
        for _ in QUESTIONS:
            own.obey("1 2 3", own.item())
        assert own.item() is None
        assert "nothing to rank" in own.obey("1 2 3", None)
        own.obey("b", None)
        assert own.item().question == QUESTIONS[2]
        own.obey("", own.item())
        assert own.finished
        own.obey("u", None)
        assert own.item().said == ""


def test_prompts_without_a_choice_are_passed_over(tmp_path):
    def poor(question, given_up):
        return Drawn(("the same",)) if question is QUESTIONS[1] else answers_to(question)

    with session(tmp_path, sampling=poor) as own:
        own.obey("1 2 3", own.item(30))
        assert own.item(30).question == QUESTIONS[2]
        assert "1 without a choice" in own.progress()
        own.obey("b", own.item())
        assert own.item().question == QUESTIONS[0]
        own.obey("", own.item())
        own.obey("3 2 1", own.item())
        assert own.finished


@settings(max_examples=20)
@given(st.lists(st.sampled_from(["1 2 3", "3=1 2", "s", "b", "u", ""]), max_size=12))
def test_whatever_is_typed_the_log_says_what_the_session_shows(typed):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with session(folder) as own:
            for words in typed:
                try:
                    own.obey(words, own.item())
                except RankingError:
                    assert words == ""
            progress = own.progress()
        with session(folder) as again:
            assert again.progress() == progress
