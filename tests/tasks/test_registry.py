"""What holds for every task, and what others may ask of one."""

from __future__ import annotations

import subprocess
import sys
from itertools import count
from typing import get_args

import numpy as np
import pytest
import torch
from support.tasks import record

from fedllm.audit.report.page import Language, read_texts
from fedllm.config import DataSection, RunConfig, Task, parse
from fedllm.config.task import pools_text, smallest_unit, trains_a_head
from fedllm.errors import ConfigError
from fedllm.models.heads import LabelHead, TokenHead
from fedllm.randomness import RandomStream
from fedllm.tasks import task_for_base, task_of
from fedllm.tasks.causal import Causal
from fedllm.tasks.classification import Classification
from fedllm.tasks.instruction import Instruction

NAMES = get_args(Task)
each = pytest.mark.parametrize("task", [task_of(name) for name in NAMES], ids=NAMES)
LABELS = ("one", "two", "three")
DATA = DataSection(train="t", labels=LABELS)


def model_of(task, tiny_model):
    return tiny_model("llama", task.name, trained=False)


def roles_of_records(task):
    if task.name == "preference":
        # Rows of several forms become events of one.
        return {"prompt", "context", "answers", "pairs"}
    return set(task.columns(DATA))


def made_up(task, how_many=5):
    number = count()
    stream = RandomStream.seeded(0)

    def words(length):
        return " ".join(f"card {next(number)}" for _ in range(length))

    return [task.made_up(words, stream, LABELS, 2) for _ in range(how_many)]


def test_names_lead_to_tasks_of_that_name():
    assert [task_of(name).name for name in NAMES] == list(NAMES)


def test_asking_for_columns_imports_no_torch():
    program = (
        "import sys\n"
        "from fedllm.config import DataSection\n"
        "from fedllm.tasks import task_of\n"
        f"for name in {NAMES!r}:\n"
        "    task = task_of(name)\n"
        "    task.columns(DataSection(train='t'))\n"
        "    task.unit, task.head(('a', 'b')), task.answering\n"
        "heavy = {'torch', 'transformers', 'peft', 'opacus'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@each
def test_roles_are_keys_that_name_columns(task):
    roles = ("text", "label", "prompt", "response", "spans")
    roles += ("context", "chosen", "rejected", "answers", "ranks")
    data = DataSection(train="t", **{role: f"{role} 1" for role in roles})
    for role, column in task.columns(data).items():
        assert column.name == f"{role} 1"
        assert column.name == getattr(data, role)


@each
def test_a_configuration_and_the_task_agree(task):
    head = task.head(LABELS)
    assert trains_a_head(task.name) == isinstance(head, LabelHead | TokenHead)
    assert pools_text(task.name) == isinstance(head, LabelHead)
    values = {"name": "x", "task": task.name, "model": {"path": "m"}, "lora": {"rank": 0}}
    values["data"] = {"train": "t"}
    if isinstance(head, LabelHead | TokenHead):
        assert parse(RunConfig, values, "test").lora.rank == 0
    else:
        with pytest.raises(ConfigError, match="nothing to train"):
            parse(RunConfig, values, "test")
    # A unit that is no single record has a key, and a name of its own in configurations.
    alone = task.unit(made_up(task)[0]) is None
    assert alone == (smallest_unit(task.name) == "record")


@each
def test_a_named_person_is_the_unit_and_nobody_else_is_in_it(task, tmp_path):
    path = tmp_path / "rows.csv"
    rows = "\n".join(f"x{i},a,y{i},z,[],b,c,person {i % 2}" for i in range(4))
    names = "text,label,prompt,response,spans,chosen,rejected,who"
    path.write_text(f"{names}\n{rows}\n")
    data = DataSection(train=str(path), unit="who")
    units = [r.unit for r in task.read(str(path), data)]
    assert units == ["person 0", "person 1", "person 0", "person 1"]
    alone = DataSection(train=str(path))
    assert {r.unit for r in task.read(str(path), alone)} == {None}
    # Public records are nobody's, also if the file names persons.
    public = data.model_copy(update={"train": "other", "test": str(path)})
    assert {r.unit for r in task.read_public(public)} == {None}
    assert task.read_public(data) == []


class Rankings(Classification):
    """A task that protects more than one record at once: all with the same text."""

    def unit(self, record):
        return record.values["text"]


def test_a_task_may_protect_what_it_derives_from_a_record(tmp_path, plain):
    """The key reaches batches, held-out records and the division into sites alike."""
    from fedllm.data.partition import split_into_sites
    from fedllm.federation.protocol.evaluating import Holdout

    path = tmp_path / "rows.csv"
    rows = "\n".join(f"question {i % 6},{'ab'[i % 2]}" for i in range(24))
    path.write_text(f"text,label\n{rows}\n")
    data = DataSection(train=str(path), sites=3)
    task = Rankings()
    records = task.read(str(path), data)
    dataset = task.encode(records, plain, 16, ("a", "b"))
    assert dataset.number_of_units == 6
    assert dataset.units.tolist() == [i % 6 for i in range(24)]
    sites = [{r.unit for r in part} for part in split_into_sites(records, data, 0).values()]
    kept, held = Holdout(b"k" * 32, 0.5).split(records)
    for one, other in [(sites[0], sites[1]), ({r.unit for r in kept}, {r.unit for r in held})]:
        assert one
        assert other
        assert not one & other


@each
def test_made_up_records_can_be_learned_from_and_tell_what_is_right(task, tiny_model):
    model = model_of(task, tiny_model)
    records = made_up(task)
    assert len({r.canonical() for r in records}) == 5
    assert set(records[0].values) == roles_of_records(task)
    dataset = task.encode(records, model.tokenizer, 16, task.labels(DATA, ()))
    assert (len(dataset), dataset.number_of_units) == (5, 5)
    losses = task.losses(model, dataset.batch(np.arange(5)))
    assert losses.shape == (5,)
    assert losses.dtype == torch.float32
    assert bool((losses > 0).all())


@each
def test_the_first_of_one_label_is_the_only_choice(task):
    records = [task.made_up(lambda n: "x", RandomStream.secure(), LABELS[:1]) for _ in range(9)]
    assert len({r.canonical() for r in records}) == 1


@each
def test_figures_and_scores_are_what_they_are_called(task, tiny_model):
    model = model_of(task, tiny_model)
    batch = task.encode(made_up(task), model.tokenizer, 16, task.labels(DATA, ())).batch(
        np.arange(5)
    )
    figures = task.figures(task.sums(model, batch), 5, model.labels)
    assert set(task.measures) <= set(figures)
    scores = task.scores(model, batch)
    assert scores.shape == (5, len(task.site_scores))
    assert task.site_scores[0].name == "loss"
    np.testing.assert_allclose(scores[:, 0], task.losses(model, batch).detach(), rtol=1e-6)
    assert all(figures[score.name] >= 0 for score in task.site_scores)
    confidence = task.confidence(np.array([0.1, 1.0, 3.0]))
    assert (np.diff(confidence) < 0).all()


@each
def test_reports_have_words_for_the_task(task):
    for language in get_args(Language):
        assert read_texts(language)["task"][task.name]


@each
def test_models_answer_only_where_the_task_says_how(task, tiny_model):
    answering = task.answering()
    if answering is None:
        return
    model = model_of(task, tiny_model)
    asked = answering(model, 16)
    taught = answering.record("card", "cash")
    assert set(taught.values) == roles_of_records(task)
    assert len(asked.complete(["card", "my card"])) == 2
    found = asked.losses([("card", "cash")])[0]
    if task.name == "preference":
        # What it learns is no mean over tokens.
        assert found > 0
        return
    mean = task.losses(model, task.encode([taught], model.tokenizer, 16).batch(np.arange(1)))
    tokens = task.sums(model, task.encode([taught], model.tokenizer, 16).batch(np.arange(1)))[-1]
    assert found == pytest.approx(float(mean) * tokens, rel=1e-5)


def test_only_models_that_answer_are_asked():
    assert {name for name in NAMES if task_of(name).answering()} == {"instruction", "preference"}


def test_a_base_is_tried_with_a_task_that_fits_it():
    assert isinstance(task_for_base(causal=True), Causal)
    assert isinstance(task_for_base(causal=False), Classification)
    assert isinstance(task_for_base(causal=True, prompted=True), Instruction)


def test_labels_are_counted_and_not_named():
    rows = [record(text="x", label=label) for label in ("secret", "other", "secret")]
    assert Classification().counted(rows) == "2 labels"
    assert Causal().counted(rows) == ""
