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
