"""A pretraining run's folder: whose it is, what it was made from, whether it is finished."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedllm.canonical import read_object
from fedllm.config import parse, read_toml, to_toml
from fedllm.errors import ConfigError, FedllmError
from fedllm.files import make_output_folder, recover_directory, write_bytes, write_json
from fedllm.locks import exclusive
from fedllm.pretraining.config import PretrainConfig
from fedllm.pretraining.corpus import corpus_files
from fedllm.runs.names import (
    CHECKPOINTS,
    INPUTS,
    LOCK,
    METRICS,
    MODEL,
    RUN_TOML,
    SUMMARY,
    TOKENIZER,
    TOKENS,
)

_CORPUS = ("train", "evaluation", "exclude")
# Where things are is not what they are; they keep their names when a folder is moved.
_PLACES = {"data": _CORPUS, "tokenizer": ("path",), "model": ("start",)}


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold a run folder, which is made if need be, as long as the block runs.

    Raises
    ------
    ConfigError
        If it cannot be made, or another process works in it.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{out} cannot be made: {error.strerror or error}", "choose another --out"
        ) from None
    with exclusive(
        out / LOCK,
        f"another process is working in {out}",
        "wait for it, or choose another --out",
    ):
        yield


def is_finished(out: Path) -> bool:
    """Tell whether the run in ``out`` came to its end."""
    return (out / SUMMARY).exists()


def check_output(config: PretrainConfig, out: Path, resume: bool) -> None:
    """Refuse a folder in which the run can neither begin nor go on; writes nothing into it.

    Raises
    ------
    ConfigError
        If it cannot be written, or holds a run that must not be mixed with this one.
    """
    _goes_on(config, out, resume)
    make_output_folder(out, "--out")


def _goes_on(config: PretrainConfig, out: Path, resume: bool) -> bool:
    """Tell whether a run has begun in ``out`` that this one continues; refuse any other."""
    begun = is_finished(out) or any((out / CHECKPOINTS).glob("step-*"))
    if not begun and not (out / RUN_TOML).exists():
        return False
    there = _configuration(out / RUN_TOML)
    if there is None or (begun and not resume):
        raise ConfigError(
            f"{out} holds a run already", "go on with --resume, or choose another --out"
        )
    if begun and _wherever(there) != _wherever(config):
        raise ConfigError(
            f"{out / RUN_TOML} differs from the configuration that should be resumed",
            "resume with the same configuration, choose another --out, or delete the folder to "
            "start again",
        )
    return begun


def claim(config: PretrainConfig, out: Path, resume: bool) -> None:
    """Take a folder for a run; one that holds no checkpoint yet is taken over as it is.

    What an earlier try left there (shards, a tokenizer) is used again if it was made from the
    same settings and files, and removed otherwise.

    Raises
    ------
    ConfigError
        If the folder holds a run that must not be mixed with this one.
    DataError
        If there is no file where the configuration looks for text.
    """
    if _goes_on(config, out, resume):
        return
    known = _read_inputs(out)
    inputs = _inputs(config, known)
    _sweep(out, everything=inputs["made_from"] != known.get("made_from"))
    write_json(out / INPUTS, inputs)
    write_bytes(out / RUN_TOML, to_toml(config).encode())


def finished_model(config: PretrainConfig, out: Path) -> Path | None:
    """Return the model in ``out`` that was made as ``config`` says; none if it is to be made.

    Raises
    ------
    ConfigError
        If the model there was made from other settings or other files, or it is not known
        from which.
    """
    if not is_finished(out):
        return None
    remedy = (
        f"delete or rename {out} to have it made again, or set model.path to {out / MODEL} to "
        "use that model as it is"
    )
    known = _read_inputs(out)
    if not known:
        raise ConfigError(f"{out} does not say what its model was made from", remedy)
    now, before = _inputs(config, known)["made_from"], known.get("made_from", {})
    if now != before:
        raise ConfigError(
            f"the model in {out} was made from another configuration or other files: "
            f"{', '.join(_differences(now, before))}",
            remedy,
        )
    if not (out / MODEL / "config.json").exists():
        raise ConfigError(f"the model in {out} is gone", f"delete {out} to have it made again")
    return out / MODEL


def _differences(now: dict[str, Any], before: Any) -> list[str]:
    if not isinstance(before, dict):
        return ["all"]
    changed = []
    for section in sorted({*now, *before}):
        one, other = now.get(section), before.get(section)
        if isinstance(one, dict) and isinstance(other, dict):
            keys = sorted(k for k in {*one, *other} if one.get(k) != other.get(k))
            changed += [f"{section}.{key}" for key in keys]
        elif one != other:
            changed.append(section)
    return changed[:8]


def _configuration(path: Path) -> PretrainConfig | None:
    try:
        return parse(PretrainConfig, read_toml(path), str(path))
    except FedllmError:
        return None  # the folder is of something else


def _decisive(config: PretrainConfig) -> dict[str, Any]:
    # Neither reports nor the use of the machine change what is learned.
    values = config.model_dump(mode="json", exclude={"report"})
    for key in ("threads", "microbatch_rows", "compile", "sharded"):
        values["training"].pop(key)
    return values


def _wherever(config: PretrainConfig) -> dict[str, Any]:
    """Return what decides what is learned, with names of files and folders without their place."""
    values = _decisive(config)
    for section, keys in _PLACES.items():
        for key in keys:
            value = values[section][key]
            if value is not None:
                several = value if isinstance(value, list) else [value]
                values[section][key] = [Path(one).name for one in several]
    return values


def _read_inputs(out: Path) -> dict[str, Any]:
    try:
        return read_object((out / INPUTS).read_bytes())
    except (OSError, ValueError):
        return {}


def _inputs(config: PretrainConfig, known: dict[str, Any]) -> dict[str, Any]:
    """Return what a model is made from, with what lies at each place instead of the place.

    ``files`` gives size, time of change and SHA-256 of each file, so that those that did not
    change are not read again.
    """
    files: dict[str, Any] = {}
    earlier = known.get("files")

    def digest(path: Path) -> str:
        stats = path.stat()
        place, stamp = str(path.absolute()), [stats.st_size, stats.st_mtime_ns]
        seen = earlier.get(place) if isinstance(earlier, dict) else None
        if not isinstance(seen, list) or seen[:2] != stamp or len(seen) != 3:
            with path.open("rb") as stream:
                seen = [*stamp, hashlib.file_digest(stream, "sha256").hexdigest()]
        files[place] = seen
        return str(seen[2])

    values = _decisive(config)
    # How much held-out text is used decides what the shards hold.
    values["report"] = {"evaluation_tokens": config.report.evaluation_tokens}
    for key in _CORPUS:
        values["data"][key] = [[digest(p) for p in corpus_files(x)] for x in values["data"][key]]
    for section, key in (("tokenizer", "path"), ("model", "start")):
        if values[section][key] is not None:
            values[section][key] = _folder_fingerprint(Path(values[section][key]))
    return {"made_from": values, "files": files}


def _folder_fingerprint(folder: Path) -> str:
    from fedllm.models.contents import fingerprints

    return fingerprints(folder).current


def _sweep(out: Path, everything: bool) -> None:
    """Remove what an earlier try left: its reports, half-made folders, and what is outdated."""
    (out / METRICS).unlink(missing_ok=True)
    for name in (TOKENS, TOKENIZER, MODEL):
        recover_directory(out / name)
        for left in out.glob(f".{name}.*"):
            shutil.rmtree(left, ignore_errors=True)
        if everything:
            shutil.rmtree(out / name, ignore_errors=True)
