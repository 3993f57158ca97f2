"""Released reward models and selectors: what they are asked, and what they say."""

from __future__ import annotations

import json

import pytest
import torch
from support.federation import small_config
from typer.testing import CliRunner

from fedllm.cli import app
from fedllm.config import to_toml
from fedllm.errors import ConfigError
from fedllm.exporting.export import judges
from fedllm.randomness import RandomStream
from fedllm.serving.reward import RewardModel
from fedllm.tasks import task_of
from fedllm.tasks.preference_asking import ranks_of

ASKED = [
    {"id": "x", "prompt": "my card", "answers": ["pay cash", "lost", "open my loan"]},
    {"prompt": "send", "context": "bank", "answers": '["fee", "rate"]'},
]


@pytest.fixture
def released(tiny_checkpoint, tmp_path):
    """A run's folder, as far as whoever asks its model looks into it."""

    def make(kind="bert", objective="reward", rank=2):
        config = small_config(
            tiny_checkpoint(kind),
            task="preference",
            preference={"objective": objective},
            lora={"rank": rank},
            data={"labels": None},
            model={"max_length": 24},
        )
        model = task_of(config).load_model(config)
        model.set_adapter(RandomStream.seeded(1, kind).normal(model.manifest.length))
        folder = tmp_path / f"{kind}-{objective}-{rank}"
        model.save_adapter(folder / "adapter")
        (folder / "run.toml").write_text(to_toml(config))
        (folder / "summary.json").write_text("{}")
        return folder, model

    return make


@pytest.mark.parametrize(("kind", "rank"), [("bert", 2), ("bert", 0), ("llama", 2)])
def test_rewards_are_those_that_the_losses_compare(kind, rank, released):
    folder, model = released(kind, rank=rank)
    reward = RewardModel.opened(folder)
    assert reward.base_fingerprint == model.fingerprint
    assert len(reward.adapter_fingerprint) == 64
    answers = ["pay cash", "lost", "open my loan"] * 7
    found = reward.score(["my card"] * 21, answers)
    assert (found.shape, found.dtype, found.requires_grad) == ((21,), torch.float32, False)
    torch.testing.assert_close(found[:3], found[3:6], rtol=1e-4, atol=1e-5)
    from fedllm.data.rankings import Ranking
    from fedllm.data.records import Record

    pair = Ranking("my card", "", ("pay cash", "lost"), ((0, 1),))
    task = task_of(model)
    dataset = task.encode([Record(pair.written(), None, None, "x")], model.tokenizer, 24)
    loss = task.losses(model, dataset.batch(torch.arange(1).numpy())).detach()
    margin = found[0] - found[1]
    assert float(loss) == pytest.approx(float(torch.nn.functional.softplus(-margin)), abs=1e-4)
    # What a model that collapsed has written is judged as well.
    assert torch.isfinite(reward.score(["my card", ""], ["", "card " * 400])).all()
    assert reward.score([], []).shape == (0,)
    about = reward.score(["send"], ["fee"], ["bank"]) - reward.score(["send"], ["fee"])
    assert float(about) != 0
    with pytest.raises(ValueError, match="2 prompts, 1 answers"):
        reward.score(["a", "b"], ["a"])


def test_only_reward_models_are_opened(released):
    folder, _ = released("llama", "dpo")
    with pytest.raises(ConfigError, match=r"holds no reward model.*'dpo'"):
        RewardModel.opened(folder)


def test_predict_ranks_answers(released, tmp_path):
    folder, _ = released()
    asked = tmp_path / "asked.jsonl"
    asked.write_text("".join(f"{json.dumps(row)}\n" for row in ASKED))
    found = CliRunner().invoke(app, ["predict", str(folder), str(asked)])
    assert found.exit_code == 0, found.output
    first, second = map(json.loads, found.stdout.splitlines())
    assert (first["row"], first["id"], sorted(first["ranks"])) == (1, "x", [1, 2, 3])
    assert len(second["scores"]) == 2
    reward = RewardModel.opened(folder)
    right = reward.score(["my card"] * 3, ASKED[0]["answers"])
    assert first["scores"] == pytest.approx(right.tolist(), abs=1e-4)
    refused = CliRunner().invoke(app, ["predict", str(folder), "--text", "card"])
    assert isinstance(refused.exception, ConfigError)
    asked.write_text('{"prompt": "card", "answers": ["pay"]}')
    refused = CliRunner().invoke(app, ["predict", str(folder), str(asked)])
    assert "field 'answers' has 1 answer\n" in str(refused.exception)
    assert "rank" not in refused.exception.remedy
    asked.write_text('{"prompt": "card", "replies": ["pay", "no"]}')
    refused = CliRunner().invoke(app, ["predict", str(folder), str(asked)])
    assert refused.exception.remedy == (
        "give each row 'prompt' and 'answers' under these very names; "
        "it may also have 'context' and 'id'"
    )
    refused = CliRunner().invoke(app, ["generate", str(folder), "--prompt", "card"])
    assert "judges answers and writes none" in str(refused.exception)
    assert judges(reward.released.model)


def test_equal_scores_are_tied():
    assert ranks_of([0.5, 2.0, 0.5, -1.0]) == [2, 1, 2, 4]
