"""From rows to ranking events: what is one unit, what is refused, and what is said of it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fedllm.config import DataSection
from fedllm.data.rankings import Ranking
from fedllm.errors import DataError
from fedllm.federation.protocol.evaluating import Holdout
from fedllm.tasks import task_of

TASK = task_of("preference")


def read(folder, rows, **data):
    path = folder / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return TASK.read(str(path), DataSection(train=str(path), **data))


def pair(prompt="p", chosen="good", rejected="bad", **more):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def rankings(records):
    return [Ranking.read_back(record.values) for record in records]


def test_rows_of_one_prompt_and_context_are_one_record(tmp_path):
    rows = [
        pair("a", "x", "y"),
        pair("b", "x", "y"),
        pair(" a\t", "z", "x"),
        pair("a", "x", "y", context="ward 3"),
        pair("a", "x", "y"),
    ]
    found = read(tmp_path, rows)
    assert [record.where for record in found] == [f"rows.jsonl row {n}" for n in (1, 2, 4)]
    assert {record.unit for record in found} == {None}
    first, second, third = rankings(found)
    assert (first.prompt, first.context, first.answers) == ("a", "", ("x", "y", "z"))
    # Two rows that say the same count twice.
    assert first.pairs == ((0, 1), (2, 0), (0, 1))
    assert (second.pairs, third.context) == (((0, 1),), "ward 3")
    assert TASK.counted(found) == "5 pairs of answers"


def test_rankings_give_a_pair_for_each_two_that_are_not_tied(tmp_path):
    rows = [
        {"prompt": "a", "answers": ["x", "y", "z"], "ranks": [2, 1, 2]},
        {"prompt": "b", "answers": '["x", "y"]', "ranks": "[1, 1.0]"},
        {"prompt": "a", "answers": ["y", "w"], "ranks": [3.5, 1]},
    ]
    first, second = rankings(read(tmp_path, rows))
    assert first.answers == ("x", "y", "z", "w")
    assert first.pairs == ((1, 0), (1, 2), (3, 1))
    assert second.pairs == ()
    assert TASK.counted(read(tmp_path, rows)) == "3 pairs of answers, 1 of ties alone"


def test_persons_keep_all_of_theirs_and_nobody_elses(tmp_path):
    rows = [pair(f"p{i % 3}", who=f"rater {i % 2}") for i in range(12)]
    found = read(tmp_path, rows, unit="who")
    assert len(found) == 6
    assert sorted({record.unit for record in found}) == ["rater 0", "rater 1"]
    assert len(read(tmp_path, rows, unit="who", max_records_per_unit=2)) == 4
    # Of different sites, too.
    assert len(read(tmp_path, rows, site="who")) == 6
    assert len(read(tmp_path, rows)) == 3


def test_of_one_event_no_more_rows_count_than_of_a_person(tmp_path):
    rows = [pair("p", f"good {i}", "bad") for i in range(40)]
    (few,) = rankings(read(tmp_path, rows, max_records_per_unit=5))
    assert len(few.pairs) == 5
    (same,) = rankings(read(tmp_path, rows[::-1], max_records_per_unit=5))
    assert sorted(few.answers) == sorted(same.answers)


def test_contradictions_are_kept_and_told_to_the_sites_people(tmp_path):
    rows = [pair("p", "x", "y"), pair("p", "y", "x"), pair("q", "x", "y")]
    found = read(tmp_path, rows)
    assert rankings(found)[0].pairs == ((0, 1), (1, 0))
    (doubt,) = TASK.doubts(found)
    assert "1 pairs of answers are preferred in both ways" in doubt.found
    assert not TASK.doubts(found[1:])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (pair(chosen="my words", rejected=" my  words"), "'chosen' and field 'rejected' are the"),
        (pair(chosen=" "), "field 'chosen' is empty"),
        (pair(rejected=None), "field 'rejected' is empty"),
        (pair(prompt=""), "field 'prompt' is empty"),
        (pair(chosen=3), "field 'chosen' is of type int"),
        ({"prompt": "p", "answers": ["x", "y"], "ranks": [1]}, "field 'ranks' 1 rank\n"),
        ({"prompt": "p", "answers": ["x"], "ranks": [1]}, "field 'answers' has 1 answer\n"),
        ({"prompt": "p", "answers": ["x"] * 9, "ranks": [1] * 9}, "'answers' has 9 answers"),
        ({"prompt": "p", "answers": ["x", "x"], "ranks": [1, 2]}, "answers 1 and 2 are the same"),
        ({"prompt": "p", "answers": ["x", ""], "ranks": [1, 2]}, "answer 2 is empty"),
        ({"prompt": "p", "answers": ["x", 2], "ranks": [1, 2]}, "answer 2 is no text"),
        ({"prompt": "p", "answers": "{", "ranks": [1, 2]}, "'answers' is not valid JSON"),
        ({"prompt": "p", "answers": ["x", "y"], "ranks": [1, True]}, "rank 2 is no number"),
        ({"prompt": "p", "answers": ["x", "y"], "ranks": "[1, NaN]"}, "rank 2 is no number"),
        ({"prompt": "p", "answers": ["x", "y"]}, "field 'ranks' is empty"),
        (pair(answers=["x", "y"], ranks=[1, 2]), "'chosen' and field 'answers' are both there"),
    ],
)
def test_rows_that_say_nothing_are_refused_by_file_row_and_field(row, said, tmp_path):
    both = pair(prompt="SECRET")
    with pytest.raises(DataError) as refused:
        read(tmp_path, [both | {"answers": None, "ranks": None}, row])
    assert "rows.jsonl row 2" in str(refused.value)
    assert said in str(refused.value)
    assert refused.value.remedy
    for private in ("my words", "SECRET"):
        assert private not in str(refused.value)


def test_a_source_has_one_form_or_the_other(tmp_path):
    with pytest.raises(DataError) as refused:
        read(tmp_path, [{"prompt": "p", "choosen": "x", "rejected": "y"}])
    assert "neither columns 'chosen' and 'rejected' nor 'answers' and 'ranks'" in str(refused.value)
    assert "set data.chosen" in refused.value.remedy
    assert "'choosen'" in refused.value.remedy
    (found,) = read(tmp_path, [{"prompt": "p", "good": "x", "rejected": "y"}], chosen="good")
    assert rankings([found])[0].answers == ("x", "y")


def test_answers_that_are_the_same_in_what_is_read_are_refused(tmp_path, plain):
    long = "fever " * 40
    found = read(tmp_path, [pair("p", f"{long} a", f"{long} b"), pair("q", "a", "b")])
    with pytest.raises(DataError, match=r"rows.jsonl row 1: its answers are the same in the 32"):
        TASK.encode(found, plain, 32)
    dataset = TASK.encode(found[1:], plain, 32)
    assert dataset.pairs[0].tolist() == [[0, 1]]


def test_the_prompt_is_cut_alike_for_all_answers(tmp_path, plain):
    rows = [pair("flu " * 60 + "end", "rest", "fever " * 20)]
    dataset = TASK.encode(read(tmp_path, rows), plain, 40)
    tags, tokens = dataset.tags, dataset.tokens
    prompts = [tokens[(tags // 4 == k) & (tags % 4 == 0)].tolist() for k in range(2)]
    assert prompts[0] == prompts[1]
    assert dataset.cut_records == 1
    assert max((tags // 4 == k).sum() for k in range(2)) <= 40


def test_a_record_is_one_unit_whatever_its_pairs(tmp_path, plain):
    rows = [pair(f"p{i % 5}", f"x{i}", "y") for i in range(20)]
    found = read(tmp_path, rows)
    dataset = TASK.encode(found, plain, 32)
    assert (len(dataset), dataset.number_of_units) == (5, 5)
    assert [len(own) for own in dataset.pairs] == [4] * 5
    again = TASK.encode([replace(r, unit="one") for r in found], plain, 32)
    assert again.number_of_units == 1


def test_the_same_question_in_another_form_of_unicode_or_place_is_one_event(tmp_path):
    spelled = ["\u00e4 b", "a\u0308 b", "\u00e4\u200b b", "\ufeff\u00e4 b", "\u00e4\u00ad\u00a0b"]
    rows = [pair(one, f"good {n}", "bad") for n, one in enumerate(spelled)]
    assert len(read(tmp_path, rows)) == 1
    rows = [pair("p", "x", "y", context="c"), pair("c\n\np", "z", "y")]
    assert len(read(tmp_path, rows)) == 1


def test_what_is_held_out_stays_so_when_an_event_grows(tmp_path):
    def held(rows):
        _, out = Holdout(b"k" * 32, 0.2).split(read(tmp_path, rows))
        return {record.values["prompt"] for record in out}

    rows = [pair(f"p{n}", "x", "y") for n in range(100)]
    more = [pair(f"p{n}", "y", "z") for n in range(100)]
    assert 5 < len(held(rows)) < 50
    assert held(rows) == held([*rows, *more]) == held([*more, *rows][::-1])
