"""The attacks of ``fedllm audit`` on a run's folder or configuration, from end to end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from fedllm.audit.attacks import canaries, membership, secrets
from fedllm.audit.attacks.results import (
    CanaryResult,
    ExtractionResult,
    MembershipResult,
)
from fedllm.audit.attacks.sandbox import Sandbox, open_sandbox
from fedllm.audit.ledgers.recompute import recompute
from fedllm.config import RunConfig, load_run_config
from fedllm.data.records import Record
from fedllm.errors import ConfigError
from fedllm.models.shared import SharedModel
from fedllm.randomness import RandomStream
from fedllm.runs.names import ADAPTER, RUN_TOML
from fedllm.tasks import task_of

Heard = Callable[[str, int, int], None]
# Name, promised epsilon and model.
Attacked = tuple[str, float | None, SharedModel]
# Ordinary records beside black-box canaries and secrets.
_ORDINARY = 400


def without_privacy(config: RunConfig) -> RunConfig:
    """Return the run's twin: the same but for noise and clipping."""
    private = config.privacy.model_copy(update={"epsilon": None})
    return config.model_copy(update={"privacy": private})


def run_canaries(
    config: RunConfig, count: int | None, confidence: float, heard: Heard
) -> CanaryResult:
    """Attack a sandboxed copy of a run with gradient canaries and loss canaries.

    Parameters
    ----------
    count : int, optional
        Gradient canaries, and loss canaries; as many as can refute the claim when left out.
    confidence : float
        That all bounds hold together.
    """
    torch.set_num_threads(config.engine.threads or torch.get_num_threads())
    stream = RandomStream.secure()
    sandbox = open_sandbox(config, _ORDINARY, stream)
    attacks, recomputed = [], None
    if config.private:
        # Two attacks: each may err half as often.
        confidence = (1 + confidence) / 2
        attacks.append(canaries.white_box(sandbox, count, confidence, stream, heard))
        events = sandbox.events(
            canaries.groups_of(sandbox, "white-box", count, confidence).settings
        )
        recomputed = recompute(events, config.privacy.delta).value
    attacks.append(canaries.black_box(sandbox, count, confidence, stream, heard))
    return CanaryResult(
        claimed=config.privacy.epsilon,
        recomputed=recomputed if recomputed is None or math.isfinite(recomputed) else None,
        delta=config.privacy.delta,
        attacks=tuple(attacks),
    )


def run_extraction(
    config: RunConfig, count: int, candidates: int, heard: Heard
) -> ExtractionResult:
    """Plant secrets into a sandboxed copy of a run, and try to get them out.

    Raises
    ------
    ConfigError
        If the run's model does not write text.
    """
    answering = task_of(config).answering()
    if answering is None:
        raise ConfigError(
            f"secrets can be got out of models that answer; this run's task is {config.task!r}",
            "use `fedllm audit membership` for this run",
        )
    torch.set_num_threads(config.engine.threads or torch.get_num_threads())
    stream = RandomStream.secure()
    sandbox = open_sandbox(config, _ORDINARY, stream)
    return secrets.audit_extraction(
        sandbox, answering, without_privacy(config), count, candidates, stream, heard
    )


def run_membership(
    folders: Sequence[Path], most: int, pairs: int, heard: Heard
) -> MembershipResult:
    """Attack the adapters of finished runs that trained on the same records.

    Parameters
    ----------
    folders : sequence of Path
        Run folders; all of one model, task and data.
    most : int
        Records of each kind: members from the runs' training data, others from their public
        test file.
    pairs : int
        Pairs of shadow models.

    Raises
    ------
    ConfigError
        If the runs do not belong together, or have no test file.
    """
    configs = [load_run_config(folder / RUN_TOML) for folder in folders]
    _require_alike(folders, configs)
    first = configs[0]
    torch.set_num_threads(first.engine.threads or torch.get_num_threads())
    # The same records for every call, so that two reports can be compared.
    stream = RandomStream.seeded(0, "membership records")
    sandbox = open_sandbox(without_privacy(first), most, stream)

    def models() -> Iterator[Attacked]:
        for number, (folder, config) in enumerate(zip(folders, configs, strict=True), 1):
            sandbox.model.load_adapter(folder / ADAPTER)
            name = config.name if folder.name == config.name else f"{config.name} ({folder.name})"
            yield name, config.privacy.epsilon, sandbox.model
            heard("models attacked", number, len(folders))

    members = training_records(first, most, stream)
    return attack_models(sandbox, members, sandbox.public, pairs, models(), heard)


def attack_models(
    sandbox: Sandbox,
    members: Sequence[Record],
    others: Sequence[Record],
    pairs: int,
    models: Iterable[Attacked],
    heard: Heard,
) -> MembershipResult:
    """Train shadow models, and tell members from others by the losses of several models.

    Parameters
    ----------
    sandbox : Sandbox
        Of a run without privacy, whose settings shadows are trained by. Its model holds a shadow
        at first, then nothing that was trained.
    pairs : int
        Pairs of shadow models.
    models : iterable of (str, float or None, SharedModel)
        Name, promised epsilon and model of each that is attacked; asked for one by one when
        shadows are trained, so that all may be one model with another adapter each time.
    """
    records = [*members, *others]
    member = np.arange(len(records)) < len(members)
    shadows = membership.train_shadows(
        sandbox, records, pairs, RandomStream.secure(), lambda n, of: heard("shadow models", n, of)
    )
    everyone = sandbox.encode(records)
    sandbox.reset()
    control = membership.attack("before training", None, sandbox.model, everyone, member, shadows)
    attacks = tuple(
        membership.attack(name, epsilon, model, everyone, member, shadows)
        for name, epsilon, model in models
    )
    return MembershipResult(
        members=len(members),
        others=len(others),
        shadows=2 * pairs,
        models=attacks,
        control=control,
    )


def training_records(config: RunConfig, most: int, stream: RandomStream) -> list[Record]:
    """Return some of a run's training records, drawn by ``stream``."""
    records = task_of(config).read(config.data.train, config.site_data)
    return [records[i] for i in stream.permutation(len(records))[:most]]


def _require_alike(folders: Sequence[Path], configs: Sequence[RunConfig]) -> None:
    first = configs[0]
    if first.data.test is None:
        raise ConfigError(
            f"{folders[0]} has no public test file, so there are no records to tell members from",
            "set data.test",
        )
    for folder, config in zip(folders, configs, strict=True):
        if (config.task, config.data.train, config.model.path, config.lora) != (
            first.task,
            first.data.train,
            first.model.path,
            first.lora,
        ):
            raise ConfigError(
                f"{folder} is not a twin of {folders[0]}: task, model, adapter or data differ",
                "give runs of the same data that differ in privacy alone",
            )
