"""What can be refused of a pretraining run before torch is imported and a file is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedllm.config import parse, read_toml, to_toml
from fedllm.errors import ConfigError
from fedllm.files import make_output_folder, write_bytes
from fedllm.pretraining.config import PretrainConfig
from fedllm.pretraining.corpus import read_documents
from fedllm.runs.names import RUN_TOML

# Where things are is not what they are; they keep their names when a folder is moved.
_PLACES = {"data": ("train", "evaluation", "exclude"), "tokenizer": ("path",), "model": ("start",)}


def check_output(config: PretrainConfig, out: Path, resume: bool) -> None:
    """Refuse a folder in which the run can neither begin nor go on; writes nothing into it.

    Raises
    ------
    ConfigError
        If it cannot be written, or holds a run that is not to be resumed or is another.
    """
    path = out / RUN_TOML
    if path.exists() and not resume:
        raise ConfigError(
            f"{out} holds a run already", "go on with --resume, or choose another --out"
        )
    if path.exists():
        there = parse(PretrainConfig, read_toml(path), str(path))
        if _decisive(there) != _decisive(config):
            raise ConfigError(
                f"{path} differs from the configuration that should be resumed",
                "resume with the same configuration, or choose another --out",
            )
    make_output_folder(out, "--out")


def check_corpus(config: PretrainConfig) -> None:
    """Read the first document of each source, so that a wrong path or column is found at once.

    Raises
    ------
    DataError
        If a file is missing, of an unknown kind, or has no such column.
    """
    data = config.data
    sources = [(place, data.text_of(i)) for i, place in enumerate(data.train)]
    sources += [(place, data.text_of_evaluation(i)) for i, place in enumerate(data.evaluation)]
    sources += [(place, data.text_of_evaluation()) for place in data.exclude]
    for place, text in sources:
        next(iter(read_documents(place, text)), None)


def claim(config: PretrainConfig, out: Path, resume: bool) -> None:
    """Check the folder, and write ``run.toml`` into a new one.

    Raises
    ------
    ConfigError
        As `check_output`.
    """
    check_output(config, out, resume)
    text = to_toml(config).encode()
    path = out / RUN_TOML
    if not path.exists() or path.read_bytes() != text:
        write_bytes(path, text)


def _decisive(config: PretrainConfig) -> dict[str, Any]:
    # Neither reports nor the use of the machine change what is learned.
    values = config.model_dump(mode="json", exclude={"report"})
    for key in ("threads", "microbatch_rows", "compile", "sharded"):
        values["training"].pop(key)
    for section, keys in _PLACES.items():
        for key in keys:
            value = values[section][key]
            if value is not None:
                several = value if isinstance(value, list) else [value]
                values[section][key] = [Path(one).name for one in several]
    return values
