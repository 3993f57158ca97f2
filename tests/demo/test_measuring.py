import numpy as np
import pytest
import torch
from demo_models import write_model
from support.tasks import encode, load_model

from fedllm.config import RunConfig, parse
from fedllm.data.records import Record
from fedllm.data.template import end_token_id
from fedllm.demo.corpus import DemoSize, make_demo_data
from fedllm.demo.measuring import examples, measure
from fedllm.tasks.answering import Answering
from fedllm.tasks.prompting import TemplatedPrompting
from fedllm.training.objectives import record_losses

SIZE = DemoSize(public_bytes=20_000, people=10, questions=16, secrets=1, repeats=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_demo_data(tmp_path_factory.mktemp("data"), 0, SIZE)


@pytest.fixture(scope="module")
def shared(tmp_path_factory, data):
    folder = write_model(tmp_path_factory.mktemp("model") / "base", data.public)
    values = {"name": "x", "task": "instruction", "model": {"path": str(folder)}}
    return load_model(parse(RunConfig, {**values, "data": {"train": "none"}}, "test"))


@pytest.fixture(scope="module")
def answering(shared):
    return Answering(shared, 64)


def test_losses_are_sums_over_the_responses_tokens(shared, answering):
    pairs = [("Where to?", "Maple ward, K27."), ("I cough. Where to?", "Cough."), ("a", "1234567")]
    records = [Record({"prompt": p, "response": r}, None, None, "") for p, r in pairs]
    dataset = encode(records, "instruction", shared.tokenizer, 64)
    batch = dataset.batch(np.arange(3))
    counts = (batch["labels"][:, 1:] != -100).sum(1).numpy()
    with torch.no_grad():
        expected = record_losses(shared, batch).numpy() * counts
    assert len(set(counts)) == 3
    np.testing.assert_allclose(answering.losses(pairs), expected, rtol=1e-5)


def test_losses_do_not_depend_on_what_else_is_scored(answering):
    pair = ("What is the access code of Ada?", "123456.")
    others = [("x " * n, "1") for n in range(1, 200)]
    alone = answering.losses([pair])[0]
    assert answering.losses([*others, pair])[-1] == pytest.approx(alone, rel=1e-4)


def test_completions_are_greedy_and_do_not_depend_on_the_batch(shared, answering, data):
    prompts = [question.prompt for question in data.questions]
    together = answering.complete(prompts)
    for prompt, reply in list(zip(prompts, together, strict=True))[:4]:
        ids = torch.tensor([TemplatedPrompting(shared.tokenizer).prompt(prompt, None).ids])
        expected = shared.module.backbone.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=24,
            eos_token_id=end_token_id(shared.tokenizer),
        )[0, ids.shape[1] :]
        assert reply == shared.tokenizer.decode(expected, skip_special_tokens=True)
    assert len(set(map(len, map(shared.tokenizer.encode, prompts)))) > 1


def test_a_model_that_learned_an_answer_by_heart_gives_it(shared, data):
    secret = data.secrets[0]
    records = [Record({"prompt": secret.prompt, "response": secret.response}, None, None, "")]
    batch = encode(records, "instruction", shared.tokenizer, 64).batch(np.arange(1))
    before = shared.adapter()
    answering = Answering(shared, 64)
    assert answering.complete([secret.prompt]) != [secret.response]
    optimizer = torch.optim.Adam(shared.trained, lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        record_losses(shared, batch).sum().backward()
        optimizer.step()
    try:
        assert answering.complete([secret.prompt]) == [secret.response]
        figures, replies, ranking = measure(answering, data, "x", False, 64, 0)
        assert figures.extracted == 1
        assert figures.exposure[0] == ranking.maximum == 6.0
        assert len(figures.exposure) == len(data.secrets)
        assert len(replies) == len(data.questions)
    finally:
        shared.set_adapter(before)


class Oracle:
    """Answers as told, and finds every response equally likely."""

    def __init__(self, replies):
        self.replies = replies

    def complete(self, prompts):
        return [self.replies.get(prompt, "?") for prompt in prompts]

    def losses(self, pairs):
        return np.ones(len(pairs))


def test_figures_count_what_was_answered(data):
    right = {q.prompt: q.response for q in data.questions}
    perfect = measure(Oracle(right), data, "x", None, 16, 0)[0]
    assert (perfect.accuracy, perfect.exact, perfect.extracted) == (1.0, 1.0, 0)

    only_ward = {q.prompt: f"{q.keyword} ward" for q in data.questions}
    found = measure(Oracle(only_ward), data, "x", None, 16, 0)[0]
    assert (found.accuracy, found.exact) == (1.0, 0.0)

    # A keyword inside another word is no right answer, nor is silence.
    inside = {q.prompt: f"{q.keyword}s" for q in data.questions}
    assert measure(Oracle(inside), data, "x", None, 16, 0)[0].accuracy == 0.0
    assert measure(Oracle({}), data, "x", None, 16, 0)[0].accuracy == 0.0

    leaking = {s.prompt: s.response for s in data.secrets}
    assert measure(Oracle(leaking), data, "x", None, 16, 0)[0].extracted == len(data.secrets)


def test_examples_set_each_models_reply_beside_its_question(data):
    replies = [[f"{m}-{i}" for i in range(len(data.questions))] for m in "ab"]
    shown = examples(data, replies, 2)
    assert [e.prompt for e in shown] == [q.prompt for q in data.questions[:2]]
    assert [e.answers for e in shown] == [("a-0", "b-0"), ("a-1", "b-1")]
