"""Ask models what nothing was learned from: how good answers are, and which pairs are right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paired import Right
from prepare import worth

from fedllm.alignment.evaluation import Measured, compared
from fedllm.alignment.guards import look_at, repeats, shares
from fedllm.alignment.losses import kl_estimate
from fedllm.alignment.policy import Policy
from fedllm.alignment.rollouts import Answer, sample
from fedllm.alignment.scoring import scores_of
from fedllm.config import DataSection
from fedllm.config.alignment import GuardsSection
from fedllm.data.rankings import Ranking
from fedllm.randomness import RandomStream
from fedllm.serving.released import load_released
from fedllm.serving.reward import RewardModel
from fedllm.serving.usable import Usable, open_usable
from fedllm.tasks import task_of
from fedllm.tasks.preference import Preference

SEED, ROWS, RANKINGS = 5, 16, 64


@dataclass(frozen=True)
class Written:
    """A model, and its answers to the prompts, one each."""

    usable: Usable
    prompts: list[str]
    answers: list[Answer]

    @classmethod
    def by(cls, usable: Usable, prompts: list[str], new_tokens: int, seed: int = SEED) -> Written:
        """Sample answers at temperature 1, as training does."""
        gap = "" if usable.prompting is None else usable.prompting.gap
        ids = [usable.prompt(text, new_tokens).ids for text in prompts]
        found = sample(usable.require_generator(), ids, new_tokens, seed, ROWS, gap)
        return cls(usable, prompts, found)

    @property
    def texts(self) -> list[str]:
        """What was answered."""
        return [one.text for one in self.answers]

    def _policy(self) -> Policy:
        if self.usable.released is None:
            raise SystemExit(f"{self.usable.what} is no run's")
        return Policy(self.usable.released.model)

    def nats(self, start: Written) -> float:
        """Return how far these answers are from the model that wrote others, in nats an answer."""
        mine, other = self._policy(), start._policy()
        total = 0.0
        for here, there in zip(
            mine.pieces(self.answers, ROWS), other.pieces(self.answers, ROWS), strict=True
        ):
            own, reference = mine.log_probs([here])[0], other.log_probs([there])[0]
            total += float(kl_estimate(own, reference).double().sum())
        return total / len(self.answers)


def scored(run: Path, start: Path, judge: Path, asked: Path, new_tokens: int) -> dict[str, Any]:
    """Return what is found of a model's answers, beside those of the one that it began with.

    ``win_rate`` and ``judge_gain`` (in standard deviations of what the start's answers get), ``kl``
    in nats an answer, ``worth`` by the known truth with the start's beside it, ``tokens``, and the
    shares of answers that are empty, short, repeated and cut.
    """
    prompts = [json.loads(line)["prompt"] for line in asked.read_text("utf-8").splitlines()]
    judging = RewardModel.opened(judge)
    before = Written.by(open_usable(start), prompts, new_tokens)
    after = before if run == start else Written.by(open_usable(run), prompts, new_tokens)
    measured = []
    for one in (after, before):
        verdicts = scores_of(judging, prompts, one.texts).tolist()
        found = shares(look_at(one.answers, GuardsSection()))
        measured.append(Measured(rewards=verdicts, verdicts=verdicts, shares=found))
    gains = compared(measured[0], measured[1], SEED)
    worths = np.array([[worth(text) for text in one.texts] for one in (after, before)])
    return {
        "prompts": len(prompts),
        **{key.replace("reward_gain", "judge_gain"): value for key, value in gains.items()},
        "kl": 0.0 if after is before else after.nats(before),
        "worth": float(worths[0].mean()),
        "worth_of_start": float(worths[1].mean()),
        **measured[0].shares,
        "repeated": _repeating(after),
        "tokens_of_start": measured[1].shares["tokens"],
    }


def _repeating(written: Written) -> float:
    """Return the share of answers that say the same again and again.

    Not of those that stand twice: of so few sentences the best answer to all prompts is one.
    """
    distinct = GuardsSection().distinct
    return float(np.mean([repeats(one.tokens[: one.length], distinct) for one in written.answers]))


def several_answers(run: Path, prompts: Path, count: int, new_tokens: int) -> list[dict[str, Any]]:
    """Return rows with a prompt and at least two different answers that a model gave to it."""
    asked = [json.loads(line)["prompt"] for line in prompts.read_text("utf-8").splitlines()]
    drawn = RandomStream.seeded(SEED, "answers").below(2**31, count)
    usable = open_usable(run)
    each = [Written.by(usable, asked, new_tokens, int(seed)).texts for seed in drawn]
    rows = []
    for prompt, *texts in zip(asked, *each, strict=True):
        different = list({" ".join(text.split()): text for text in texts if text.strip()}.values())
        if len(different) > 1:
            rows.append({"prompt": prompt, "answers": different})
    return rows


def rankings(path: Path) -> list[Ranking]:
    """Read ranking events."""
    data = DataSection(train=str(path))
    return [Ranking.read_back(one.values) for one in Preference().read(str(path), data)]


@torch.no_grad()
def rights(runs: Sequence[Path], compared: Path, most: int) -> list[Right]:
    """Return what the models of some runs get right of the rankings of a file.

    Parameters
    ----------
    runs : sequence of Path
        Of one base and one objective, so that frozen layers read each answer once for all.
    most : int
        The first rankings of the file, of which each run is asked.
    """
    released = load_released(runs[0])
    model = released.model
    data = released.config.data.model_copy(update={"test": str(compared)})
    task = task_of(model)
    records = task.read_public(data)[:most]
    dataset = task.encode(records, model.tokenizer, released.config.model.max_length)
    pairs = np.array([float(len(own)) for own in dataset.pairs or ()])
    found = []
    for run in runs:
        model.load_adapter(run / "adapter")
        shares = np.zeros(len(dataset))
        for start in range(0, len(dataset), RANKINGS):
            rows = np.arange(start, min(start + RANKINGS, len(dataset)))
            batch = model.attach(dataset, rows, dataset.batch(rows))
            shares[rows] = task.scores(model, batch)[:, 1]
        found.append(Right(shares * pairs, pairs))
    return found
