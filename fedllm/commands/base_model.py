"""A base model that is still to be pretrained: ``model.path`` names its ``pretrain.toml``."""

from __future__ import annotations

from pathlib import Path

from fedllm.config import RunConfig


def with_base_model(config: RunConfig) -> RunConfig:
    """Return ``config`` with a checkpoint as its model, pretraining it first if need be.

    When ``model.path`` is a ``.toml`` file, the model is ``runs/<name>/model`` of that
    pretraining run. A finished one is used as it is, a broken-off one goes on.
    """
    path = Path(config.model.path)
    if path.suffix != ".toml":
        return config
    from fedllm.pretraining.config import load_pretrain_config
    from fedllm.runs.names import MODEL, SUMMARY

    pretraining = load_pretrain_config(path, [])
    out = Path("runs") / pretraining.name
    folder = out / MODEL
    if not (out / SUMMARY).exists():
        from fedllm.pretraining.run import run_pretraining
        from fedllm.runs.names import RUN_TOML
        from fedllm.runs.terminal import terminal_observer

        begun = (out / RUN_TOML).exists()
        folder = run_pretraining(pretraining, out, [terminal_observer()], resume=begun)
    model = config.model.model_copy(update={"path": str(folder.absolute())})
    return config.model_copy(update={"model": model})
