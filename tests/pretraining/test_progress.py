"""What a person sees of a run."""

import io

from fedllm.pretraining.progress import Live, PlainLines, Progress, describe


def progress(step=10, evaluation=None):
    return Progress(step, 100, step * 64, 3.25, 12345.6, 3723.0, evaluation)


def test_one_line_says_it_all():
    assert describe(progress(evaluation={"bits_per_byte": 1.5})) == (
        "step 10/100  loss 3.250  bits per byte 1.500  12,346 tokens/s  1:02:03 left"
    )


def test_plain_lines_are_few_and_never_miss_an_evaluation():
    stream = io.StringIO()
    observer = PlainLines(stream)
    for step in range(1, 101):
        observer.advance(progress(step, {"bits_per_byte": 2.0} if step == 55 else None))
    observer.close()
    lines = stream.getvalue().splitlines()
    assert 10 <= len(lines) <= 13
    assert any("step 55/" in line and "bits per byte" in line for line in lines)
    assert "step 100/100" in lines[-1]


def test_the_bar_takes_messages_before_and_after_it_is_shown(capsys):
    bar = Live()
    bar.message("before [not markup]")
    bar.advance(progress(evaluation={"bits_per_byte": 1.5}))
    bar.message("after")
    bar.advance(progress(20))
    bar.close()
    text = capsys.readouterr().err
    assert "before [not markup]" in text
    assert "bits per byte 1.500" in text
