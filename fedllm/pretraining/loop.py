"""The training loop: steps, evaluation, checkpoints, and a stop when the loss diverges."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedTokenizerBase

from fedllm.errors import ConfigError, TrainingError
from fedllm.models.contents import reading
from fedllm.pretraining.checkpoint import load_tensors, newest_checkpoint, save_checkpoint
from fedllm.pretraining.config import PretrainConfig
from fedllm.pretraining.course import Clock, Course
from fedllm.pretraining.evaluation import continue_prompts, held_out_figures, held_out_sums
from fedllm.pretraining.material import HeldOut
from fedllm.pretraining.metrics import add_metrics, forget_after
from fedllm.pretraining.objectives import Batch, Objective
from fedllm.pretraining.optimizer import Optimizers, clip_gradients
from fedllm.pretraining.parallel import World, shard, synchronise, whole_model
from fedllm.pretraining.sampling import Sampler
from fedllm.randomness import RandomStream
from fedllm.runs import names
from fedllm.runs.observer import Observer, StepReport

# A smoothed loss this far above its best is not coming back (nats per target).
_DIVERGED_NATS = 2.0
_SMOOTHING = 0.9


class TrainingLoop:
    """One run of one objective; the order of things is in `run`."""

    def __init__(
        self,
        config: PretrainConfig,
        objective: Objective,
        sampler: Sampler,
        held_out: HeldOut,
        tokenizer: PreTrainedTokenizerBase,
        out: Path,
        world: World,
        observer: Observer,
    ) -> None:
        training = config.training
        if training.batch_rows % world.size:
            raise ConfigError(
                f"training.batch_rows = {training.batch_rows} cannot be dealt to "
                f"{world.size} processes",
                "choose a multiple of their number",
            )
        self._config = config
        self._objective = objective
        self._sampler = sampler
        self._held_out = held_out
        self._tokenizer = tokenizer
        self._out = out
        self._metrics = out / names.METRICS
        self._world = world
        self._observer = observer
        if training.sharded and world.size > 1:
            shard(objective)
        self._optimizers = Optimizers(objective.model, training)
        self._course = Course()
        self._trained: nn.Module = objective
        if training.compile:
            self._trained = torch.compile(objective)  # type: ignore[assignment]
        if world.size > 1 and not training.sharded:
            self._trained = DistributedDataParallel(self._trained)

    def run(self) -> dict[str, float]:
        """Train to the end; return the last evaluation.

        Raises
        ------
        TrainingError
            If the loss is not finite or diverges; the last checkpoint is from before.
        """
        report, steps, course = self._config.report, self._config.training.steps, self._course
        evaluation: dict[str, float] = self._evaluate() if course.step in (0, steps) else {}
        if course.step == 0:
            self._write({"step": 0, "tokens": 0, **evaluation, **self._samples()})
        self._objective.model.train()
        clock = Clock(course)
        while course.step < steps:
            rate, norm = self._step()
            last = course.step == steps
            due = last or course.step % report.evaluate_every == 0
            if due or course.step % report.log_every == 0:
                figures = self._evaluate() if due else {}
                evaluation = figures or evaluation
                clock.update(course)
                self._report(rate, norm, figures, clock, self._samples() if due else {})
            if last or course.step % report.checkpoint_every == 0:
                clock.update(course)
                self._save()
        return evaluation

    def _step(self) -> tuple[float, float]:
        """Take one optimiser step; return learning rate and gradient norm."""
        course, world, training = self._course, self._world, self._config.training
        torch.manual_seed(RandomStream.seeded(*self._label()).uint64(1)[0] >> np.uint64(1))
        pieces = self._sampler.next(training.batch_rows)
        batches = list(self._batches(pieces))
        counts = [self._objective.targets(b) for b in batches]
        targets = world.total(*(sum(part) for part in zip(*counts, strict=True)))
        # DDP and FSDP take the mean over processes; each part is a mean over all its targets.
        scale = torch.tensor(
            [world.size / max(1.0, count) for count in targets], device=world.device
        )
        mean = 0.0
        for number, batch in enumerate(batches):
            synchronise(self._trained, now=number + 1 == len(batches))
            with self._autocast():
                loss = torch.dot(self._trained(batch), scale)
            loss.backward()
            mean += float(loss.detach()) / world.size
        (mean,) = world.total(mean)
        norm = clip_gradients(self._objective.model.parameters(), training.clipping_norm)
        self._check(mean, norm)
        rate = self._optimizers.step(course.step)
        course.step += 1
        course.window_loss += mean
        course.window_steps += 1
        return rate, norm

    def _label(self) -> tuple[int, str, int, int]:
        return self._config.seed, "step", self._course.step, self._world.rank

    def _batches(self, pieces: list[NDArray[np.int64]]) -> Iterator[Batch]:
        own = range(self._world.rank, len(pieces), self._world.size)
        size = self._config.training.microbatch_rows or len(own)
        for start in range(0, len(own), size):
            rows = own[start : start + size]
            random = [
                RandomStream.seeded(self._config.seed, "row", self._course.step, row)
                for row in rows
            ]
            batch = self._objective.batch([pieces[i] for i in rows], random)
            yield {k: v.to(self._world.device) for k, v in batch.items()}

    def _autocast(self) -> torch.autocast:
        enabled = self._config.training.precision == "bf16"
        return torch.autocast(self._world.device.type, torch.bfloat16, enabled=enabled)

    def _check(self, loss: float, norm: float) -> None:
        course = self._course
        finite = math.isfinite(loss) and math.isfinite(norm)
        if finite:
            known = not math.isnan(course.smoothed)
            course.smoothed = (
                _SMOOTHING * course.smoothed + (1 - _SMOOTHING) * loss if known else loss
            )
            course.best = min(course.best, course.smoothed)
            if course.smoothed <= course.best + _DIVERGED_NATS:
                return
        raise TrainingError(
            f"pretraining diverged at step {course.step + 1}: loss {loss:.3g}, "
            f"gradient norm {norm:.3g}, best smoothed loss {course.best:.3g}",
            "the last good checkpoint is kept in checkpoints/; start again with a lower "
            "training.learning_rate or a longer training.warmup",
        )

    def _evaluate(self) -> dict[str, float]:
        held_out, training = self._held_out, self._config.training
        if not held_out.pieces:
            return {}
        rows = training.microbatch_rows or training.batch_rows
        sums = {
            name: held_out_sums(self._objective, pieces, rows, self._world, self._autocast())
            for name, pieces in held_out.pieces.items()
        }
        return held_out_figures(self._objective.measures, sums, held_out.text_bytes)

    def _samples(self) -> dict[str, Any]:
        report = self._config.report
        if not report.prompts:
            return {}
        model = whole_model(self._objective.model, self._world)
        if model is None or not self._world.first:
            return {}
        texts = continue_prompts(
            model,
            self._tokenizer,
            report.prompts,
            report.sample_tokens,
            self._config.seed % 2**63,
        )
        return {"samples": dict(zip(report.prompts, texts, strict=True))}

    def _report(
        self,
        rate: float,
        norm: float,
        evaluation: dict[str, float],
        clock: Clock,
        samples: dict[str, Any],
    ) -> None:
        course, training = self._course, self._config.training
        loss = course.window_loss / course.window_steps
        course.window_loss, course.window_steps = 0.0, 0
        step_tokens = training.batch_rows * training.sequence_length
        pace = clock.seconds_per_step(course.step)
        progress = StepReport(
            course.step,
            training.steps,
            course.step * step_tokens,
            loss,
            step_tokens / pace,
            pace * (training.steps - course.step),
            evaluation or None,
        )
        self._write(
            {
                "step": course.step,
                "tokens": progress.tokens,
                "loss": loss,
                "learning_rate": rate,
                "gradient_norm": norm,
                "tokens_per_s": round(progress.tokens_per_s, 1),
                "seconds": round(course.seconds, 3),
                "cpu_seconds": round(course.cpu_seconds, 3),
                **evaluation,
                **samples,
            }
        )
        self._observer.advanced(progress)

    def _write(self, figures: dict[str, Any]) -> None:
        if self._world.first:
            add_metrics(self._metrics, figures)

    def _tensors(self) -> dict[str, torch.Tensor]:
        model = self._objective.model
        parameters = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
        return parameters | {f"optimizer.{k}": v for k, v in self._optimizers.tensors().items()}

    def _save(self) -> None:
        course = {**asdict(self._course), "sampler": self._sampler.state()}
        folder = self._out / names.CHECKPOINTS
        save_checkpoint(folder, self._course.step, self._tensors(), course, self._world)

    def resume(self) -> int:
        """Go back to the newest checkpoint and return its step; 0 if there is none.

        Lines of metrics.jsonl from after it are removed: these steps are done again.

        Raises
        ------
        CheckpointError
            If no checkpoint is whole, or it is of another model.
        """
        found = newest_checkpoint(self._out / names.CHECKPOINTS, self._world)
        if found is not None:
            path, course = found
            load_tensors(path, self._tensors())
            with reading(f"{path / 'checkpoint.json'} is damaged", "start a new run"):
                self._sampler.restore(course.pop("sampler"))
                self._course = Course(**course)
        if self._world.first:
            forget_after(self._metrics, self._course.step if found else -1)
        return self._course.step

    @property
    def step(self) -> int:
        """Steps that are done."""
        return self._course.step

    @property
    def seconds(self) -> dict[str, float]:
        """Wall time and this process's CPU time so far, over all starts of the run."""
        return {"total": round(self._course.seconds, 3), "cpu": round(self._course.cpu_seconds, 3)}
