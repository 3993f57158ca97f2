"""What a person sees of a run."""

import io

from fedllm.config import RunConfig
from fedllm.runs.metrics import RoundReport
from fedllm.runs.observer import Start, StepReport
from fedllm.runs.terminal import PlainObserver, RichObserver, describe_round, describe_step


def progress(step=10, evaluation=None):
    return StepReport(step, 100, step * 64, 3.25, 12345.6, 3723.0, evaluation)


def test_one_line_says_it_all():
    assert describe_step(progress(evaluation={"bits_per_byte": 1.5})) == (
        "step 10/100  loss 3.250  bits per byte 1.500  12,346 tokens/s  1:02:03 left"
    )


def test_plain_lines_are_few_and_never_miss_an_evaluation():
    stream = io.StringIO()
    observer = PlainObserver(stream)
    for step in range(1, 101):
        observer.advanced(progress(step, {"bits_per_byte": 2.0} if step == 55 else None))
    observer.close()
    lines = stream.getvalue().splitlines()
    assert 10 <= len(lines) <= 13
    assert any("step 55/" in line and "bits per byte" in line for line in lines)
    assert "step 100/100" in lines[-1]


def test_the_bar_takes_messages_before_and_after_it_is_shown(capsys):
    bar = RichObserver()
    bar.note("before [not markup]")
    bar.started(Start("tiny", RunConfig.model_construct(), "steps", 100))
    bar.advanced(progress(evaluation={"bits_per_byte": 1.5}))
    bar.note("after")
    bar.advanced(progress(20))
    bar.close()
    text = capsys.readouterr().err
    assert "before [not markup]" in text
    assert "bits per byte 1.500" in text


class Clock:
    """Tells the seconds that a test sets."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def answers(observer, clock, seconds_each, count=300):
    """Let so many sites answer, each after so many seconds."""
    for done in range(count + 1):
        observer.answering(2, "train", done, count)
        clock.now += seconds_each


def test_a_long_round_is_told_every_fifteen_seconds_and_a_quick_one_is_not():
    clock, stream = Clock(), io.StringIO()
    observer = PlainObserver(stream, clock)
    answers(observer, clock, 0.5)
    lines = stream.getvalue().splitlines()
    assert lines[:2] == [
        "round 2, training: 30 of 300 sites have answered",
        "round 2, training: 60 of 300 sites have answered",
    ]
    assert len(lines) == 10
    observer.finished_round(RoundReport(round=2, sites=300))
    stream.truncate(0)
    for number in range(3, 60):
        answers(observer, clock, 0.01)
        observer.finished_round(RoundReport(round=number, sites=300))
    assert "answered" not in stream.getvalue()


def test_who_joins_is_counted_where_nobody_knows_how_many_will():
    clock, stream = Clock(), io.StringIO()
    observer = PlainObserver(stream, clock)
    clock.now = 15.0
    observer.answering(1, "join", 7, None)
    observer.answering(1, "join", 8, None)
    assert stream.getvalue() == "round 1, joining: 7 sites have answered\n"


def test_the_bar_of_sites_says_what_they_are_asked_for(capsys):
    clock = Clock()
    bar = RichObserver(clock)
    clock.now = 15.0
    bar.answering(1, "join", 1, None)
    bar.started(Start("run", RunConfig.model_construct(), "rounds", 2, 0, 2))
    bar.answering(1, "settle", 1, 2)
    bar.close()
    text = capsys.readouterr().err
    assert "round 1, joining: 1 sites have answered" in text
    assert "settling on the sum" in text
    assert "round 1, settling" not in text


def test_a_small_epsilon_is_not_shown_as_nothing():
    assert "epsilon 1.001e-09" in describe_round(
        RoundReport(round=1, sites=2, epsilon={"a": 1.0001e-9, "b": 1e-10}), 3
    )


def test_what_is_not_a_number_is_said():
    report = RoundReport(round=1, sites=2, metrics={"loss": float("nan")}, epsilon={"a": None})
    assert "loss not a number" in describe_round(report, 3)
    assert "epsilon unlimited" in describe_round(report, 3)


def test_a_site_is_shown_by_title_and_name_and_where_a_run_goes_on(capsys):
    bar = RichObserver()
    titles = {"site-1": "北京医院"}
    bar.started(Start("run", RunConfig.model_construct(), "rounds", 9, 4, 2, titles))
    bar.site_answered(5, "site-1", 1, 2)
    bar.close()
    text = capsys.readouterr().err
    assert "北京医院 (site-1)" in text
    assert "2 sites, 9 rounds, going on after round 4" in text


def test_what_a_site_calls_itself_is_no_markup(capsys):
    bar = RichObserver()
    bar.started(Start("run", RunConfig.model_construct(), "rounds", 2, 0, 2))
    bar.site_answered(1, "[red]site[/nonsense]", 1, 2)
    bar.finished_round(RoundReport(round=1, sites=2))
    bar.close()
    assert "round 1/2  2 sites" in capsys.readouterr().err
