"""What raters said: which line counts, and what a log is refused for."""

from __future__ import annotations

import pytest
from support.rating import ORIGIN, QUESTIONS, answers_to, rating

from fedllm.errors import ConfigError
from fedllm.rating.store import RatingLog, checked_name, latest, read_ratings

FIRST, SECOND, *_ = QUESTIONS


def log(tmp_path, rater="ann", origin=ORIGIN, questions=tuple(QUESTIONS)):
    return RatingLog(tmp_path / "r.jsonl", rater, origin, questions)


def test_the_latest_line_of_a_rater_counts(tmp_path):
    own, drawn = log(tmp_path), answers_to(FIRST)
    own.add(FIRST, drawn, (0, 1, 2), "ranked", (1, 2, 3))
    own.add(FIRST, drawn, (0, 1, 2), "ranked", (3, 2, 1))
    log(tmp_path, "bob").add(FIRST, drawn, (2, 1, 0), "skipped")
    again = log(tmp_path)
    assert again.said(FIRST).ranks == (3, 2, 1)
    assert again.said(SECOND) is None
    counted = latest(read_ratings([tmp_path / "r.jsonl"]))
    assert [(one.rater, one.state) for one in counted] == [("ann", "ranked"), ("bob", "skipped")]
    again.add(FIRST, drawn, (0, 1, 2), "open")
    assert again.said(FIRST) is None
    assert [one.rater for one in latest(read_ratings([tmp_path / "r.jsonl"]))] == ["bob"]


def test_a_line_says_all_there_is(tmp_path):
    log(tmp_path).add(FIRST, answers_to(FIRST), (2, 0, 1), "ranked", (1, 2, 2))
    (line,) = read_ratings([tmp_path / "r.jsonl"])
    assert (line.prompt, line.context, line.id, line.row) == (
        FIRST.prompt,
        FIRST.context,
        "a",
        1,
    )
    assert (line.ranks, line.shown, line.origin, line.unit) == (
        (1, 2, 2),
        (2, 0, 1),
        ORIGIN,
        FIRST.unit,
    )
    assert line.time.startswith("20")
    assert FIRST.prompt not in repr(line)
    assert FIRST.context not in repr(line)
    assert "answer" not in repr(line).replace("answers=3", "")


def test_ratings_of_something_else_are_refused(tmp_path):
    log(tmp_path).add(FIRST, answers_to(FIRST), (0, 1, 2), "ranked", (1, 2, 3))
    other = ORIGIN.model_copy(
        update={"model": ORIGIN.model.model_copy(update={"fingerprint": "cd"})}
    )
    with pytest.raises(ConfigError, match="is of another model"):
        log(tmp_path, origin=other)
    warmer = ORIGIN.sampling.model_copy(update={"temperature": 0.5, "seed": 3})
    with pytest.raises(ConfigError, match=r"--temperature 1.0, --seed 0"):
        log(tmp_path, origin=ORIGIN.model_copy(update={"sampling": warmer}))
    with pytest.raises(ConfigError, match="1 prompts that are not in this file"):
        log(tmp_path, questions=[SECOND])
    # A file that grew is the same file.
    log(tmp_path, questions=[SECOND, FIRST])


def test_without_ratings_there_is_nothing_to_tell(tmp_path):
    log(tmp_path)
    with pytest.raises(ConfigError, match="holds no ratings"):
        read_ratings([tmp_path / "r.jsonl"])


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "a\u202eb", "x" * 65])
def test_a_name_that_is_none(name):
    with pytest.raises(ConfigError, match="rater's name"):
        checked_name(name)


def test_a_name_has_one_spelling():
    assert checked_name(" Bjo\u0308rn ") == checked_name("Bj\u00f6rn") == "Björn"


@pytest.mark.parametrize(
    ("ranks", "more"),
    [
        ((1, 1, 1), {"answers": ("a", "b")}),
        ((1, 3), {}),
        ((1, 2), {"state": "skipped"}),
        ((), {"state": "ranked"}),
        ((1, 2), {"shown": (0, 0)}),
        ((1, 2), {"answers": ("a b", "a  b")}),
    ],
)
def test_a_rating_fits_its_answers(ranks, more):
    with pytest.raises(ValueError, match="fit"):
        rating("ann", ranks, **more)


OTHER = ORIGIN.model_copy(update={"model": ORIGIN.model.model_copy(update={"fingerprint": "cd"})})


def test_of_several_files_the_latest_line_counts_by_time_and_not_by_their_order():
    old = rating("ann", (3, 2, 1), time="2026-01-01T00:00:00+00:00")
    new = rating("ann", (1, 2, 3), time="2026-02-01T00:00:00+00:00")
    assert latest([new, old]) == latest([old, new]) == [new]
    back = rating("ann", (), state="open", answers=new.answers, time="2026-03-01T00:00:00+00:00")
    assert latest([back, new, old]) == []


def test_one_raters_word_on_two_models_answers_counts_twice():
    one = rating("ann", (1, 2), answers=("a", "b"))
    two = rating("ann", (2, 1), answers=("c", "d"), origin=OTHER)
    assert latest([one, two]) == [one, two]
    # Taken back is what was said of the one model alone.
    back = rating("ann", (), state="open", answers=("c", "d"), origin=OTHER)
    assert latest([one, two, back]) == [one]
    # Nobody has two rankings of the same answers.
    again = rating("ann", (2, 1), answers=("b", "a"), origin=OTHER, time="2027")
    assert latest([again, one]) == [again]


def test_a_clock_that_was_set_back_loses_nothing(tmp_path, monkeypatch):
    drawn = answers_to(FIRST)
    log(tmp_path).add(FIRST, drawn, (0, 1, 2), "ranked", (1, 2, 3))
    monkeypatch.setattr("fedllm.clock.utc_now", lambda: "2001-01-01T00:00:00+00:00")
    log(tmp_path).add(FIRST, drawn, (0, 1, 2), "ranked", (3, 2, 1))
    (counted,) = latest(read_ratings([tmp_path / "r.jsonl"]))
    assert counted.ranks == (3, 2, 1)
