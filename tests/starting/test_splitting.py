"""Records put aside: all are in one of two files, and no person in both."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from fedllm.errors import FedllmError
from fedllm.starting.guessing import Guess
from fedllm.starting.looking import LOOKED_ROWS, Source, look
from fedllm.starting.splitting import share_of_test, split

ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "note": st.text(min_size=1, max_size=6).filter(lambda text: text.strip()),
            "who": st.sampled_from(["Ann", "ann ", "Bo", "Cy", "Di", "Ed", "Fé", "Fe\u0301"]),
        }
    ),
    min_size=2,
    max_size=40,
)


def parts_of(rows: list[dict], unit: str | None, most: int) -> tuple[list, list] | None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = folder / "a.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = Guess("causal", {"text": "note"}, unit, None)
        sample = look(Source(str(data)), most)
        try:
            made = split(sample, found, folder / "train.jsonl", folder / "test.jsonl")
        except FedllmError:
            assert sorted(path.name for path in folder.iterdir()) == ["a.jsonl"]
            return None
        parts = [
            [json.loads(line) for line in path.read_text().split("\n")[:-1]]
            for path in (made.train, made.test)
        ]
        assert made.records == (len(parts[0]), len(parts[1]))
        return parts[0], parts[1]


@given(rows=ROWS, most=st.sampled_from([LOOKED_ROWS, 1]))
@settings(max_examples=25)
def test_each_record_is_in_one_file_and_equal_ones_in_the_same(rows, most):
    parts = parts_of(rows, None, most)
    if parts is None:
        return
    train, test = ([row["note"] for row in part] for part in parts)
    assert sorted(train + test) == sorted(row["note"] for row in rows)
    assert not set(train) & set(test)


@given(rows=ROWS)
@settings(max_examples=25)
def test_no_person_is_in_both_however_spelled(rows):
    numbered = [row | {"note": f"{number} {row['note']}"} for number, row in enumerate(rows)]
    parts = parts_of(numbered, "who", LOOKED_ROWS)
    if parts is None:
        return
    train, test = ({row["note"].partition(" ")[0] for row in part} for part in parts)
    spelled = {"ann ": "Ann", "Fe\u0301": "Fé"}
    persons = [
        {spelled.get(row["who"], row["who"]) for n, row in enumerate(rows) if str(n) in part}
        for part in (train, test)
    ]
    assert not persons[0] & persons[1]
    assert all("who" not in row for row in parts[1])


@given(rows=ROWS, order=st.randoms(use_true_random=False))
@settings(max_examples=20)
def test_the_order_of_the_file_decides_nothing(rows, order):
    turned = list(rows)
    order.shuffle(turned)
    first, second = (parts_of(one, None, LOOKED_ROWS) for one in (rows, turned))
    if first is None or second is None:
        assert first == second
        return
    assert sorted(row["note"] for row in first[1]) == sorted(row["note"] for row in second[1])


def test_how_many_are_put_aside():
    assert (share_of_test(500), share_of_test(5000)) == (0.2, 0.1)
    assert share_of_test(10_000_000) == 5e-4
