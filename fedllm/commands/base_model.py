"""A base model that is still to be pretrained: ``model.path`` names its ``pretrain.toml``."""

from __future__ import annotations

from pathlib import Path

from fedllm.config import RunConfig


def with_base_model(config: RunConfig) -> RunConfig:
    """Return ``config`` with a checkpoint as its model, pretraining it first if need be.

    When ``model.path`` is a ``.toml`` file, the model is ``runs/<name>/model`` of that
    pretraining run. A finished one is used if it was made from the same settings and files, a
    broken-off one goes on.

    Raises
    ------
    ConfigError
        If the model there was made from other settings or files.
    """
    path = Path(config.model.path)
    if path.suffix != ".toml":
        return config
    from fedllm.pretraining.config import load_pretrain_config
    from fedllm.pretraining.folder import finished_model
    from fedllm.pretraining.selection import check_corpus
    from fedllm.runs.names import TOKENS

    pretraining = load_pretrain_config(path, [])
    out = Path("runs") / pretraining.name
    folder = finished_model(pretraining, out)
    if folder is None:
        if not (out / TOKENS / "manifest.json").exists():
            check_corpus(pretraining.data)
        from fedllm.pretraining.run import run_pretraining
        from fedllm.runs.terminal import terminal_observer

        folder = run_pretraining(pretraining, out, [terminal_observer()], resume=True)
    model = config.model.model_copy(update={"path": str(folder.absolute())})
    return config.model_copy(update={"model": model})
