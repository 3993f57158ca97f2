"""The steps of an alignment, from the first measurement to the model that is kept."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedllm.alignment.checkpoint import Course, has_checkpoint, read_checkpoint, write_checkpoint
from fedllm.alignment.evaluation import Measured, Measuring, compared, deviation
from fedllm.alignment.guards import Scale, look_at, objections, shaped, shares
from fedllm.alignment.learning import Learner
from fedllm.alignment.losses import kl_price
from fedllm.alignment.policy import Policy
from fedllm.alignment.prompts import PublicPrompts
from fedllm.alignment.results import add_line, forget_after
from fedllm.alignment.rollouts import Answer, sample
from fedllm.alignment.scoring import Scorer, scores_of
from fedllm.clock import utc_now
from fedllm.config.alignment import Algorithm, AlignConfig
from fedllm.errors import ConfigError, TrainingError
from fedllm.models.generation import Generator
from fedllm.randomness import RandomStream
from fedllm.runs.names import CHECKPOINTS, METRICS

# Rewards that differ by less are rounding, and teach nothing.
_SMALLEST_DEVIATION = 1e-6


@dataclass(frozen=True)
class Progress:
    """Where an alignment stands after a step; step 0 is the measurement before any.

    Attributes
    ----------
    step, steps : int
    training : mapping of str to float
        Figures of the step's answers; empty at step 0.
    measured : mapping of str to float
        Of the prompts that are held out to choose by, where they were measured.
    note : str
        What whoever watches should know; may be empty.
    """

    step: int
    steps: int
    training: Mapping[str, float]
    measured: Mapping[str, float]
    note: str = ""


Told = Callable[[Progress], None]


@dataclass(frozen=True, eq=False)
class Parts:
    """What an alignment works with.

    Attributes
    ----------
    policy : Policy
    generator : Generator
        Writes with the policy's model.
    gap : str
        What every answer begins with, and is no part of it.
    reward, judge : Scorer
        The same object where nobody else judges.
    prompts : PublicPrompts
    """

    policy: Policy
    generator: Generator
    gap: str
    reward: Scorer
    judge: Scorer
    prompts: PublicPrompts


@dataclass(frozen=True, eq=False)
class Outcome:
    """What an alignment came to.

    Attributes
    ----------
    course : Course
        As it ended.
    adapter : float32 array (P,)
        Of the model that is kept, which the policy holds now.
    test : Measured
        The kept model, on prompts that nothing was chosen by.
    gains : dict of str to float
        `fedllm.alignment.evaluation.compared` of these.
    """

    course: Course
    adapter: NDArray[np.float32]
    test: Measured
    gains: dict[str, float]


class Alignment:
    """One alignment; the order of things is in `run`.

    Parameters
    ----------
    config : AlignConfig
    algorithm : {"ppo", "grpo"}
    parts : Parts
    out : Path
        Its folder.
    asked : mapping
        What decides on the result; another one is not gone on with.
    told : callable
        Hears each step.

    Raises
    ------
    ConfigError
        If GRPO has a single answer to a prompt, which stands among no others.
    """

    def __init__(
        self,
        config: AlignConfig,
        algorithm: Algorithm,
        parts: Parts,
        out: Path,
        asked: Mapping[str, Any],
        told: Told = lambda progress: None,
    ) -> None:
        if algorithm == "grpo" and config.answers.per_prompt < 2:
            raise ConfigError(
                "answers.per_prompt = 1: GRPO compares the answers to one prompt with each other",
                "set answers.per_prompt to 4 or more, or use `fedllm align ppo`",
            )
        self._config, self._parts, self._told = config, parts, told
        self._checkpoints, self._metrics = out / CHECKPOINTS, out / METRICS
        self._asked = {"algorithm": algorithm, **asked}
        self._learner = Learner(parts.policy, config, algorithm)
        self._measuring = Measuring(
            parts.policy,
            parts.generator,
            parts.reward,
            parts.judge,
            config.guards,
            config.answers.new_tokens,
            config.training.microbatch_size,
            parts.gap,
        )
        self._best = parts.policy.start
        self._began = time.monotonic()

    def run(self) -> Outcome:
        """Train to the end, or go on from where a checkpoint is; keep the best model.

        Raises
        ------
        TrainingError
            If a loss or a reward is no number, or all answers get the same reward.
        """
        course = self._resumed() if has_checkpoint(self._checkpoints) else self._begun()
        while not course.ended and course.step < self._config.training.steps:
            self._step(course)
        policy = self._parts.policy
        policy.model.set_adapter(self._best)
        test = self._measuring.measure(self._parts.prompts.test, self._seed("test"))
        gains = compared(test, course.test_before, self._seed("bootstrap"))
        return Outcome(course, policy.adapter, test, gains)

    def _begun(self) -> Course:
        prompts, config = self._parts.prompts, self._config
        before = self._measuring.measure(prompts.selection, self._seed("selection"))
        test = self._measuring.measure(prompts.test, self._seed("test"))
        spread = deviation(before)
        if spread < _SMALLEST_DEVIATION:
            raise TrainingError(
                "the reward model gives all answers of the starting model the same reward",
                "look at its pairwise accuracy; there is nothing to learn from it",
            )
        course = Course(
            run_id=secrets.token_hex(8),
            started=utc_now(),
            coefficient=config.kl.coefficient,
            mean=float(np.mean(before.rewards)),
            deviation=spread,
            selection_before=before,
            test_before=test,
            best_verdict=before.verdict,
        )
        self._report(course, {}, before.figures(), "")
        return course

    def _resumed(self) -> Course:
        course, tensors = read_checkpoint(self._checkpoints, self._asked)
        self._parts.policy.model.set_adapter(tensors["adapter"].numpy())
        self._best = tensors["best"].numpy()
        self._learner.restore(tensors)
        forget_after(self._metrics, course.step)
        self._began -= course.seconds
        return course

    def _step(self, course: Course) -> None:
        """Sample, look, learn; or end before learning where the model has gone too far."""
        config, number = self._config, course.step + 1
        prompts = self._parts.prompts.of_step(number, config.training.prompts, config.seed)
        asked = [one for one in prompts for _ in range(config.answers.per_prompt)]
        answers = sample(
            self._parts.generator,
            [one.ids for one in asked],
            config.answers.new_tokens,
            self._seed("step", number),
            4 * config.training.microbatch_size,
            self._parts.gap,
        )
        rewards = scores_of(
            self._parts.reward, [one.text for one in asked], [one.text for one in answers]
        )
        sampled = self._learner.look(answers)
        figures = self._figures(course, answers, rewards) | {"kl": sampled.kl}
        course.step = number
        if sampled.kl > config.kl.ceiling:
            course.ended = (
                f"its answers at step {number} were {sampled.kl:.1f} nats from the reference, more "
                f"than kl.ceiling = {config.kl.ceiling:g}"
            )
            self._report(course, figures, {}, course.ended)
            return
        worth = shaped(rewards, look_at(answers, config.guards), self._scale(course), config.guards)
        lesson = self._learner.lesson(sampled, worth, config.answers.per_prompt, course.coefficient)
        stream = RandomStream.seeded(config.seed, "minibatches", number)
        figures |= self._learner.learn(lesson, course.coefficient, stream)
        course.coefficient = kl_price(
            course.coefficient, sampled.kl, config.kl.target, config.kl.coefficient
        )
        due = number % config.selection.every == 0 or number == config.training.steps
        measured, note = self._chosen(course) if due else ({}, "")
        self._report(course, figures, measured, note)

    def _figures(self, course: Course, answers: list[Answer], rewards: Tensor) -> dict[str, float]:
        return {
            "reward": float(rewards.mean()),
            "reward_gain": float(self._scale(course).of(rewards).mean()),
            **shares(look_at(answers, self._config.guards)),
            "coefficient": course.coefficient,
        }

    def _scale(self, course: Course) -> Scale:
        return Scale(course.mean, course.deviation, course.selection_before.shares["tokens"])

    def _chosen(self, course: Course) -> tuple[dict[str, float], str]:
        """Measure the model; keep it if it is the best so far, and end if none is for long."""
        now = self._measuring.measure(self._parts.prompts.selection, self._seed("selection"))
        before, config = course.selection_before, self._config
        against = objections(now.shares, before.shares, config.guards, config.kl.ceiling)
        course.waited += 1
        if not against and now.verdict > course.best_verdict:
            self._best, course.best_step = self._parts.policy.adapter, course.step
            course.best_verdict, course.waited = now.verdict, 0
        note = f"not kept: {'; '.join(against)}" if against else ""
        if course.waited >= config.selection.patience:
            course.ended = f"no better model in {course.waited} measurements (selection.patience)"
            note = "; ".join(filter(None, [note, course.ended]))
        gains = compared(now, before, self._seed("bootstrap"))
        return {**now.figures(), **gains}, note

    def _report(
        self,
        course: Course,
        training: Mapping[str, float],
        measured: Mapping[str, float],
        note: str,
    ) -> None:
        """Write the step's line, then how far it is: what is cut off between is done again."""
        course.seconds = time.monotonic() - self._began
        add_line(self._metrics, course.step, training, measured, course.seconds, note)
        tensors = {
            "adapter": torch.from_numpy(self._parts.policy.adapter),
            "best": torch.from_numpy(self._best),
            **self._learner.tensors(),
        }
        write_checkpoint(self._checkpoints, self._asked, course, tensors)
        steps = self._config.training.steps
        self._told(Progress(course.step, steps, training, measured, note))

    def _seed(self, *labels: str | int) -> int:
        return int(RandomStream.seeded(self._config.seed, "answers", *labels).uint64(1)[0] >> 1)
