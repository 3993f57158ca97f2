"""One step's answers, and what PPO or GRPO learns from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedllm.alignment.advantages import generalised, group_relative, token_rewards, whitened
from fedllm.alignment.losses import (
    clipped_objective,
    clipped_share,
    clipped_value_loss,
    kl_estimate,
)
from fedllm.alignment.policy import Piece, Policy, ValueHead, by_answer, by_piece
from fedllm.alignment.rollouts import Answer
from fedllm.config.alignment import Algorithm, AlignConfig
from fedllm.errors import TrainingError
from fedllm.randomness import RandomStream


@dataclass(frozen=True, eq=False)
class Sampled:
    """A step's answers, and what was known when they were sampled; tensors one a piece, (N,).

    Attributes
    ----------
    pieces : list of Piece
    log_probs, reference : list of Tensor
        Of the tokens, under the policy that sampled them and under the reference, in nats.
    kl : float
        Nats an answer between the two.
    """

    pieces: list[Piece]
    log_probs: list[Tensor]
    reference: list[Tensor]
    kl: float


@dataclass(frozen=True, eq=False)
class Lesson:
    """What is learned from them; tensors one a piece, (N,).

    Attributes
    ----------
    sampled : Sampled
    advantages : list of Tensor
    values, returns : list of Tensor
        Of PPO: what the head expected, and what it should have; else empty.
    """

    sampled: Sampled
    advantages: list[Tensor]
    values: list[Tensor]
    returns: list[Tensor]


class Learner:
    """Takes optimiser steps.

    Parameters
    ----------
    policy : Policy
    config : AlignConfig
    algorithm : {"ppo", "grpo"}
    """

    def __init__(self, policy: Policy, config: AlignConfig, algorithm: Algorithm) -> None:
        self.policy = policy
        self._config = config
        self.values = ValueHead(policy.width, policy.model.device) if algorithm == "ppo" else None
        groups: list[dict[str, Any]] = [
            {"params": policy.trained, "lr": config.training.learning_rate}
        ]
        if self.values is not None:
            own = list(self.values.parameters())
            groups.append({"params": own, "lr": config.value.learning_rate})
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0)

    def look(self, answers: Sequence[Answer]) -> Sampled:
        """Say what is known of answers that the policy has just sampled."""
        pieces = self.policy.pieces(answers, self._config.training.microbatch_size)
        log_probs, reference = self.policy.log_probs(pieces), self.policy.reference(pieces)
        nats = sum(
            float(kl_estimate(own, other).double().sum())
            for own, other in zip(log_probs, reference, strict=True)
        )
        return Sampled(pieces, log_probs, reference, nats / len(answers))

    def lesson(self, sampled: Sampled, rewards: Tensor, group: int, coefficient: float) -> Lesson:
        """Return what is to be learned.

        Parameters
        ----------
        rewards : Tensor
            (A,), of the answers, in standard deviations.
        group : int
            Answers to one prompt, which stand one behind the other.
        coefficient : float
            What a nat costs.
        """
        pieces = sampled.pieces
        if self.values is None:
            relative = group_relative(rewards, group).float().tolist()
            lengths = [length for piece in pieces for length in piece.lengths]
            spread = [
                torch.full((size,), one, device=self.policy.model.device)
                for one, size in zip(relative, lengths, strict=True)
            ]
            return Lesson(sampled, by_piece(pieces, spread), [], [])
        with torch.no_grad():
            values = [self.values(self.policy.read(piece).states) for piece in pieces]
        advantages, returns = [], []
        of_answers = (sampled.log_probs, sampled.reference, values)
        for reward, own, other, expected in zip(
            rewards.tolist(), *(by_answer(pieces, one) for one in of_answers), strict=True
        ):
            gained = token_rewards(reward, own, other, coefficient)
            better = generalised(gained, expected, self._config.value.gae_lambda)
            advantages.append(better)
            returns.append(better + expected)
        return Lesson(
            sampled, by_piece(pieces, whitened(advantages)), values, by_piece(pieces, returns)
        )

    def learn(self, lesson: Lesson, coefficient: float, stream: RandomStream) -> dict[str, float]:
        """Go through a step's answers as often as is asked for; returns figures of it.

        Raises
        ------
        TrainingError
            If a loss or a gradient is no number; the model is then as before the optimiser step.
        """
        training = self._config.training
        found: list[dict[str, float]] = []
        for _ in range(training.epochs):
            order = stream.permutation(len(lesson.sampled.pieces)).tolist()
            count = min(training.minibatches, len(order))
            for number in range(count):
                found.append(self._optimise(lesson, order[number::count], coefficient))
        return {name: sum(one[name] for one in found) / len(found) for name in found[0]}

    def _optimise(self, lesson: Lesson, places: list[int], coefficient: float) -> dict[str, float]:
        self.optimizer.zero_grad()
        sampled, config = lesson.sampled, self._config
        tokens = sum(sampled.pieces[place].tokens for place in places)
        sums = {"loss": 0.0, "clipped": 0.0}
        for place in places:
            piece, before = sampled.pieces[place], sampled.log_probs[place]
            read = self.policy.read(piece)
            losses = clipped_objective(
                read.log_probs, before, lesson.advantages[place], config.training.clip
            )
            if self.values is None:
                # PPO's tokens paid for it in their rewards.
                losses = losses + coefficient * kl_estimate(
                    read.log_probs, sampled.reference[place]
                )
            whole = losses.sum() / tokens
            if self.values is not None:
                whole = whole + self._value_loss(lesson, place, read.states, sums) / tokens
            whole.backward()
            sums["loss"] += float(losses.detach().sum())
            share = clipped_share(read.log_probs.detach(), before, config.training.clip)
            sums["clipped"] += share * piece.tokens
        norm = self._clip()
        found = {name: value / tokens for name, value in sums.items()}
        if not all(torch.isfinite(torch.tensor([*found.values(), norm]))):
            raise TrainingError(
                f"alignment diverged: loss {found['loss']:.3g}, gradient norm {norm:.3g}",
                "begin anew with a lower training.learning_rate or kl.coefficient",
            )
        self.optimizer.step()
        return {**found, "gradient_norm": norm}

    def _value_loss(
        self, lesson: Lesson, place: int, states: Tensor, sums: dict[str, float]
    ) -> Tensor:
        head = self.values
        if head is None:
            raise RuntimeError("there is no value head")
        losses = clipped_value_loss(
            head(states), lesson.values[place], lesson.returns[place], self._config.value.clip
        )
        sums["value_loss"] = sums.get("value_loss", 0.0) + float(losses.detach().sum())
        return losses.sum()

    def _clip(self) -> float:
        most = self._config.training.gradient_norm
        if self.values is not None:
            nn.utils.clip_grad_norm_(self.values.parameters(), most)
        return float(nn.utils.clip_grad_norm_(self.policy.trained, most))

    def tensors(self) -> dict[str, Tensor]:
        """Return all that training goes on from, but for the adapter itself."""
        found: dict[str, Tensor] = {}
        if self.values is not None:
            found |= {f"value.{name}": p.detach() for name, p in self.values.named_parameters()}
        for number, parameter in enumerate(self._parameters()):
            state = self.optimizer.state[parameter]
            found |= {f"optimizer.{number}.{key}": value for key, value in state.items()}
        return found

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` returned.

        Raises
        ------
        KeyError, RuntimeError
            If they are of another model.
        """
        with torch.no_grad():
            for name, parameter in self.values.named_parameters() if self.values else ():
                parameter.copy_(tensors[f"value.{name}"])
        states: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            of, _, rest = name.partition(".")
            if of == "optimizer":
                number, _, key = rest.partition(".")
                states.setdefault(int(number), {})[key] = value
        # It puts them where the parameters are.
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": states})

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]
