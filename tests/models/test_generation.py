"""What a model writes is what it says, whatever stands beside it."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from support.tasks import load_model
from support.tiny_models import DECODERS, ENCODER_DECODERS, LAYERS, save_tiny

from fedllm.config import RunConfig, parse
from fedllm.errors import ConfigError
from fedllm.models.drawing import Sampling
from fedllm.models.generation import Generator, Writing
from fedllm.randomness import RandomStream

PROMPTS = [[4, 5, 6], [7, 4, 9, 10, 11, 4, 6, 8, 5], [12], [13, 14, 4, 5, 7, 8], [9, 9, 15]]
END = 3


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    @cache
    def make(kind):
        values = {
            "name": "tiny",
            "task": "instruction",
            "model": {
                "path": str(save_tiny(kind, tmp_path_factory.mktemp(kind))),
                "max_length": 16,
            },
            "data": {"train": "unused.jsonl"},
            "lora": {"rank": 2, "last_layers": LAYERS - 1},
        }
        model = load_model(parse(RunConfig, values, "test"), ())
        model.set_adapter(0.3 * RandomStream.seeded(3, kind).normal(model.manifest.length))
        return model

    return make


@pytest.fixture(scope="module")
def generator_of(model_of):
    return lambda kind, ends=(): Generator(
        model_of(kind).module.backbone, model_of(kind).tokenizer, ends
    )


def slowly(model, prompt, count):
    """The likeliest tokens, each from a whole pass of the trained model without any cache."""
    ids, module = list(prompt), model.module
    for _ in range(count):
        # As in training, with one token more, which no logits see.
        row = torch.tensor([[*ids, 4]])
        labels = torch.full_like(row, -100)
        labels[:, len(prompt) :] = row[:, len(prompt) :]
        batch = {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": labels}
        with torch.no_grad():
            ids.append(int(module(batch)[0][-1].argmax()))
    return tuple(ids[len(prompt) :])


@pytest.mark.parametrize("kind", [*DECODERS, *ENCODER_DECODERS])
def test_what_is_written_is_what_was_trained(kind, model_of, generator_of):
    """With a cache, padding, windows shorter than the texts, and the adapter on."""
    found = generator_of(kind).write(PROMPTS, Writing(6))
    for prompt, completion in zip(PROMPTS, found, strict=True):
        assert completion.tokens == slowly(model_of(kind), prompt, 6), prompt
        assert completion.finish == "length"
    # A random Pegasus says one word to everything.
    assert len({c.tokens for c in found}) > 1 or kind == "pegasus"
    assert model_of(kind).module.backbone.training


@pytest.mark.parametrize("kind", [*DECODERS, *ENCODER_DECODERS])
def test_kinds_that_are_known_ignore_padding(kind, generator_of):
    assert generator_of(kind).ignores_padding


def test_prompts_of_one_length_go_together_where_padding_counts(generator_of, monkeypatch):
    generator = generator_of("llama")
    expected = generator.write(PROMPTS, Writing(4))
    monkeypatch.setattr(generator, "ignores_padding", False)
    sizes = []
    own = Generator._run

    def run(self, part, given_up):
        sizes.append({len(s.prompt) for s in part})
        own(self, part, given_up)

    monkeypatch.setattr(Generator, "_run", run)
    assert generator.write(PROMPTS, Writing(4)) == expected
    assert all(len(found) == 1 for found in sizes)


def test_a_model_that_counts_padding_is_noticed(model_of):
    generator = Generator(model_of("llama").module.backbone, model_of("llama").tokenizer, ())

    def blind(module, args, kwargs):
        return args, kwargs | {"attention_mask": None, "position_ids": None}

    hook = generator.network.model.register_forward_pre_hook(blind, with_kwargs=True)
    try:
        assert not generator.ignores_padding
    finally:
        hook.remove()


# --- chance -------------------------------------------------------------------------------------


def drawn(seed=5, **other):
    return Writing(8, sampling=Sampling(temperature=1.5, seed=seed, **other))


def test_a_seed_gives_the_same_in_any_company(generator_of):
    generator = generator_of("llama")
    together = generator.write(PROMPTS, drawn())
    assert together == generator.write(PROMPTS, drawn(), rows=2)
    assert together[::-1] == generator.write(PROMPTS[::-1], drawn())
    for prompt, completion in zip(PROMPTS, together, strict=True):
        assert generator.write([prompt], drawn()) == [completion]
    assert together != generator.write(PROMPTS, drawn(6))


def test_the_same_prompt_is_answered_in_several_ways(generator_of):
    generator = generator_of("llama")
    several = generator.write([PROMPTS[0]] * 4, drawn())
    assert len({completion.tokens for completion in several}) > 1
    assert generator.write([PROMPTS[0]] * 4, drawn(), rows=1) == several
    assert generator.write([PROMPTS[0]], drawn()) == several[:1]


def test_without_a_seed_it_is_new_each_time(generator_of):
    generator = generator_of("llama")
    assert generator.write(PROMPTS, drawn(None)) != generator.write(PROMPTS, drawn(None))


def test_each_prompt_has_its_own_settings(generator_of):
    generator = generator_of("llama")
    ways = [Writing(3), drawn(), Writing(5, sampling=Sampling(1.0, 0.5, 1))]
    found = generator.write(PROMPTS[:3], ways)
    alone = [generator.write([p], w)[0] for p, w in zip(PROMPTS[:3], ways, strict=True)]
    assert found == alone
    assert [len(completion.tokens) for completion in found] == [3, 8, 5]


def test_others_random_numbers_are_left_alone(generator_of):
    before = torch.get_rng_state()
    generator_of("llama").write(PROMPTS, drawn())
    assert torch.equal(torch.get_rng_state(), before)


# --- ends ---------------------------------------------------------------------------------------


def test_an_end_token_ends_and_is_no_part_of_it(generator_of):
    whole = generator_of("llama").write(PROMPTS[:1], Writing(8))[0].tokens
    end = whole[3]
    place = whole.index(end)
    found = generator_of("llama", (end,)).write(PROMPTS, Writing(8))
    assert (found[0].tokens, found[0].finish) == (whole[:place], "stop")
    assert all(end not in completion.tokens for completion in found)


def test_a_stop_text_ends_across_tokens_and_is_no_part_of_it(generator_of):
    generator = generator_of("llama")
    whole = generator.write(PROMPTS[:1], Writing(8))[0].text
    assert whole.count(" ") == 7
    first, second = whole.split()[2:4]
    stop = f"{first[-2:]} {second[:2]}"
    pieces = []
    found = generator.write(
        PROMPTS[:1], Writing(8, (stop, "nowhere")), lambda number, piece: pieces.append(piece)
    )[0]
    assert found.finish == "stop"
    assert found.text == whole[: whole.index(stop)] == "".join(pieces)


def test_a_stop_may_be_a_token_that_no_text_shows(generator_of):
    generator = generator_of("gpt2")
    # Made likeliest, as a model does at the end of a turn.
    head = generator.network.get_output_embeddings()
    head.bias = torch.nn.Parameter(
        torch.zeros(len(head.weight)).index_fill_(0, torch.tensor(2), 99.0)
    )
    try:
        assert generator.write(PROMPTS[:1], Writing(4))[0].tokens == (2, 2, 2, 2)
        assert generator.write(PROMPTS[:1], Writing(4, ("<s>",)))[0].tokens == ()
    finally:
        head.bias = None


def test_pieces_are_of_their_prompt_and_together_its_text(generator_of):
    pieces = {}
    found = generator_of("qwen2", (END,)).write(
        PROMPTS, drawn(), lambda number, piece: pieces.setdefault(number, []).append(piece), rows=2
    )
    assert {n: "".join(p) for n, p in pieces.items()} == {
        n: c.text for n, c in enumerate(found) if c.text
    }


# --- what is refused ----------------------------------------------------------------------------


def test_what_a_model_cannot_read_is_refused(generator_of):
    generator = generator_of("llama")
    assert generator.positions == 64
    for prompt in ([], [4] * 64):
        with pytest.raises(ConfigError, match="prompt"):
            generator.write([prompt], Writing(4))
    found = generator.write([[4] * 60], Writing(100))[0]
    assert (len(found.tokens), found.finish) == (4, "length")
    assert generator_of("bloom").positions is None
    assert generator_of("bart").room([4] * 60) == 63
    with pytest.raises(ConfigError, match="leaves no room"):
        generator_of("bart").room([4] * 64)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Writing(0),
        lambda: Writing(1, ("",)),
        lambda: Sampling(-0.1),
        lambda: Sampling(float("nan")),
        lambda: Sampling(float("inf")),
        lambda: Sampling(1.0, 0.0),
        lambda: Sampling(1.0, 1.1),
    ],
)
def test_settings_without_a_meaning_are_refused(make):
    with pytest.raises(ConfigError):
        make()
