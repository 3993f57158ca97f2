"""What raters said is read by a run with preferences as the unit that was promised."""

from __future__ import annotations

import json

import pytest
from support.rating import rating
from typer.testing import CliRunner

from fedllm.cli import app
from fedllm.config import DataSection
from fedllm.data.questions import question
from fedllm.data.rankings import Ranking
from fedllm.rating.prompts import Question
from fedllm.tasks import task_of


def exported(folder, said, *options):
    """Return the units and rankings that a run reads in what the command writes."""
    log, out = folder / "ratings.jsonl", folder / "preferences.jsonl"
    lines = [{"format": "fedllm.rating.v1", **one.model_dump(mode="json")} for one in said]
    log.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    log.chmod(0o600)
    done = CliRunner().invoke(app, ["rate", str(log), "--export", str(out), *options])
    assert done.exit_code == 0, done.output
    data = DataSection(train=str(out), unit="person" if any(one.person for one in said) else None)
    records = task_of("preference").read(str(out), data)
    return [record.unit for record in records], [Ranking.read_back(one.values) for one in records]


SAID = [
    rating("ann", (1, 2), context="ward 3"),
    # Another prompt, and one that says nothing.
    rating("ann", (2, 1)),
    rating("ann", (1, 1), prompt="q"),
    rating("ann", (), prompt="r"),
    # The first prompt again: other white space, another model's answers, another rater.
    rating("bob", (2, 1, 2), prompt=" p ", context="ward\t3", answers=("x", "answer  1", "y")),
    rating("cyd", (2, 1), context="ward 3"),
    # Bob changed his mind: what he said first counts no more.
    rating("bob", (1, 1), prompt="q"),
    rating("bob", (2, 1), prompt="q\n"),
]


def test_each_prompt_is_one_unit_of_all_raters(tmp_path):
    units, (first, second, third) = exported(tmp_path, SAID)
    assert units == [None, None, None]
    assert (first.prompt, first.context) == ("p", "ward 3")
    assert first.answers == ("answer 0", "answer 1", "x", "y")
    # Ann and cyd contradict each other, and both count.
    assert sorted(first.pairs) == [(0, 1), (1, 0), (1, 2), (1, 3)]
    assert (second.context, second.pairs) == ("", ((1, 0),))
    assert (third.prompt, third.pairs) == ("q\n", ((1, 0),))


def test_a_consensus_is_read_too(tmp_path):
    said = [*SAID[:4], rating("bob", (1, 2), context="ward  3"), rating("bob", (1, 2))]
    units, (first,) = exported(tmp_path, said, "--consensus")
    assert units == [None]
    assert (first.context, first.pairs) == ("ward 3", ((0, 1),))


@pytest.mark.parametrize("options", [(), ("--consensus",)])
def test_nobody_is_charged_for_what_is_about_another(tmp_path, options):
    """Prompts of two files may be the same words about two persons."""
    said = [rating("ann", (1, 2), person="a"), rating("bob", (1, 2), person="b")]
    units, found = exported(tmp_path, said, *options)
    assert units == ["a", "b"]
    assert [one.pairs for one in found] == [((0, 1),)] * 2


@pytest.mark.parametrize("context", ["", " \n", "ward 3"])
def test_raters_and_runs_ask_alike(context):
    asked = Question(1, "p", context).asked
    assert asked == question("p", context) == ("ward 3\n\np" if context == "ward 3" else "p")
