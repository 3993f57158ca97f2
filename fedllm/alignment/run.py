"""An alignment from a configuration to a folder that other commands take for a run's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from fedllm.alignment.checkpoint import has_checkpoint, read_checkpoint
from fedllm.alignment.folder import check_folder, is_finished
from fedllm.alignment.loop import Alignment, Parts, Progress, Told
from fedllm.alignment.policy import Policy
from fedllm.alignment.private_files import not_compared, require_public
from fedllm.alignment.prompts import PublicPrompts, deal_out, read_prompts
from fedllm.alignment.results import made_of, summary_of
from fedllm.canonical import sha256_hex
from fedllm.config import RunConfig, to_toml
from fedllm.config.alignment import Algorithm, AlignConfig
from fedllm.errors import ConfigError
from fedllm.exporting.export import write_released_card
from fedllm.files import write_bytes
from fedllm.runs import names
from fedllm.runs.folder import locked
from fedllm.runs.start import StartedFrom, find_start
from fedllm.runs.summary import Summary, read_summary, write_summary
from fedllm.serving.released import Released
from fedllm.serving.reward import RewardModel
from fedllm.serving.usable import Usable, open_usable

# Where things lie, and on what they are computed, is not what they are.
_PLACES = {"model": ("start", "base", "device"), "prompts": ("file",)}


def run_alignment(
    config: AlignConfig, algorithm: Algorithm, out: Path, resume: bool, told: Told
) -> Summary:
    """Align a run's model, and leave it in ``out`` as a run does.

    Writes ``align.toml``, ``metrics.jsonl``, ``checkpoints/``, and at the end ``adapter/`` with its
    card, ``run.toml`` (what loads it) and ``summary.json``.

    Raises
    ------
    RefusedError
        If the prompts are known to be a site's records.
    ConfigError, CheckpointError
        If a model, a file or the folder does not fit.
    TrainingError
        If a loss or a reward is no number.
    """
    check_folder(out, resume)
    with locked(out):
        return _run(config, algorithm, out, resume, told)


def _run(config: AlignConfig, algorithm: Algorithm, out: Path, resume: bool, told: Told) -> Summary:
    start = _require_run(find_start(config.model.start))
    others = _reward_runs(config)
    prompts_asked = read_prompts(config.prompts)
    texts = [one.whole for one in prompts_asked]
    runs = [start.folder.parent, *(one.folder.parent for one in others.values())]
    unread = require_public(config.prompts, prompts_asked, runs)
    asked = _asked(config, start, others, texts)
    if resume and is_finished(out):
        _require_begun_with(out / names.CHECKPOINTS, {"algorithm": algorithm, **asked})
        return read_summary(out)
    if unread:
        told(Progress(0, config.training.steps, {}, {}, not_compared(unread)))
    with _keys_of_the_file("model.base"):
        usable = open_usable(Path(config.model.start), config.model.base, config.model.device)
    released = _require_writer(usable)
    prompts = deal_out(texts, config, lambda text: _tokens(usable, text, config))
    reward, judge = _scorers(config)
    policy = Policy(released.model)
    prompting = usable.prompting
    parts = Parts(
        policy,
        usable.require_generator(),
        "" if prompting is None else prompting.gap,
        reward,
        judge,
        prompts,
    )
    write_bytes(out / names.ALIGN_TOML, to_toml(config).encode(), mode=0o600)
    outcome = Alignment(config, algorithm, parts, out, asked, told).run()
    released.model.save_adapter(out / names.ADAPTER, _repository(released))
    write_bytes(out / names.RUN_TOML, to_toml(_run_config(config, released)).encode(), mode=0o600)
    summary = summary_of(
        config,
        algorithm,
        released,
        read_summary(start.folder.parent),
        made_of(start, list(others.values())),
        outcome,
        {**_models(others), **_counts(prompts, unread)},
    )
    write_summary(out, summary)
    write_released_card(out, released.model)
    return summary


def _require_begun_with(checkpoints: Path, asked: Mapping[str, Any]) -> None:
    """Refuse to hand out a finished alignment for another one that is asked for."""
    if not has_checkpoint(checkpoints):
        raise ConfigError(
            f"the alignment in {checkpoints.parent} is finished, and without {checkpoints.name} "
            "it cannot be told if it is the one that is asked for",
            "use the folder as it is, or begin anew with another --out",
        )
    read_checkpoint(checkpoints, asked)


def _reward_runs(config: AlignConfig) -> dict[str, StartedFrom]:
    """Return the adapters of reward model and judge, by what they are here."""
    found = {"reward": find_start(config.reward.run, "reward.run")}
    if config.reward.judge is not None:
        found["judge"] = find_start(config.reward.judge, "reward.judge")
        if found["judge"].about["adapter"] == found["reward"].about["adapter"]:
            raise ConfigError(
                "reward.judge is the reward model of reward.run, which is no independent measure",
                "name a reward model that was trained by another run, or leave reward.judge out",
            )
    return found


def _require_run(start: StartedFrom) -> StartedFrom:
    run = start.folder.parent
    if not all((run / name).exists() for name in (names.RUN_TOML, names.SUMMARY)):
        raise ConfigError(
            f"model.start: {start.folder} lies in no folder of a finished run",
            f"give the folder that a run was written into, with {names.RUN_TOML} and "
            f"{names.SUMMARY}",
        )
    return start


def _require_writer(usable: Usable) -> Released:
    usable.require_generator()
    if usable.released is None:
        raise ConfigError(f"{usable.what} has no adapter", "give the folder of a finished run")
    return usable.released


@contextmanager
def _keys_of_the_file(key: str) -> Iterator[None]:
    """Name the key where others, who load models, name an option of theirs."""
    try:
        yield
    except ConfigError as error:
        raise type(error)(error.message, error.remedy.replace("--base", key)) from None


def _tokens(usable: Usable, text: str, config: AlignConfig) -> tuple[tuple[int, ...], int]:
    prompt = usable.prompt(text, config.answers.new_tokens)
    return prompt.ids, prompt.cut


def _scorers(config: AlignConfig) -> tuple[RewardModel, RewardModel]:
    asked, device = config.reward, config.model.device
    with _keys_of_the_file("reward.base"):
        reward = RewardModel.opened(Path(asked.run), asked.base, device)
    if asked.judge is None:
        return reward, reward
    with _keys_of_the_file("reward.judge_base"):
        return reward, RewardModel.opened(Path(asked.judge), asked.judge_base, device)


def _asked(
    config: AlignConfig,
    start: StartedFrom,
    others: Mapping[str, StartedFrom],
    texts: Sequence[str],
) -> dict[str, Any]:
    """Return what decides on the result, by the names that people know."""
    values = config.model_dump(mode="json", exclude={"reward"})
    for section, keys in _PLACES.items():
        for key in keys:
            values[section].pop(key)
    plain = {
        f"{section}.{key}" if isinstance(inner, dict) else section: value
        for section, inner in values.items()
        for key, value in (inner.items() if isinstance(inner, dict) else [("", inner)])
    }
    models = {"reward": "reward.run", "judge": "reward.judge"}
    return {
        **plain,
        "model.start": start.about["adapter"],
        **{models[name]: one.about["adapter"] for name, one in others.items()},
        "prompts.file": sha256_hex("\0".join(texts).encode()),
    }


def _run_config(config: AlignConfig, released: Released) -> RunConfig:
    """Return the configuration that loads the result: that of the run that it began with.

    Its epsilon is what the records of that run were promised.
    """
    return released.config.model_copy(update={"name": config.name})


def _repository(released: Released) -> str | None:
    card = released.config.card
    return card.base_model if card else None


def _models(others: Mapping[str, StartedFrom]) -> dict[str, Any]:
    """Name the models that taught and judged."""
    found = {
        name: {key: one.about.get(key) for key in ("run", "run_id", "adapter", "epsilon", "delta")}
        for name, one in others.items()
    }
    return {"reward": found["reward"], "judge": found.get("judge")}


def _counts(prompts: PublicPrompts, unread: Sequence[str]) -> dict[str, Any]:
    counts = cast(
        "dict[str, Any]",
        {name: len(getattr(prompts, name)) for name in ("learning", "selection", "test")},
    )
    counts |= {"repeated": prompts.repeated, "cut": prompts.cut, "not_compared": list(unread)}
    return {"prompts": counts}
