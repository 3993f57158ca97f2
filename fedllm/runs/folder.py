"""Who may work in a run folder, and whether it is that of the run that is asked for.

Everything is checked before the first file is written: a command that is refused leaves the
folder as it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from glob import has_magic
from pathlib import Path
from typing import Any

from fedllm.config import RunConfig, to_toml
from fedllm.errors import CheckpointError, ConfigError, FedllmError
from fedllm.files import make_output_folder, write_bytes
from fedllm.locks import exclusive
from fedllm.runs import names
from fedllm.runs.checkpoints import RunState
from fedllm.runs.record import read_config
from fedllm.runs.summary import Summary, read_summary

# Where things are is not what they are: a file keeps its name when a folder is moved, and a
# model has a fingerprint.
_FILES = ("train", "test")


@contextmanager
def locked(out: Path, option: str = "--out") -> Iterator[None]:
    """Hold a run folder as long as the block runs; it is made if need be.

    Raises
    ------
    ConfigError
        If it cannot be written, or another process works in it.
    """
    make_output_folder(out, option)
    busy = f"another process is working in {out}"
    with exclusive(out / names.LOCK, busy, f"wait for it, or choose another {option}"):
        yield


def check_folder(out: Path, resume: bool) -> None:
    """Refuse a folder in which a run can neither begin nor go on; writes nothing.

    Raises
    ------
    ConfigError
        If it is a file, holds something else, or has no run to resume.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(
            f"could not write into the folder {out}: it is a file",
            "choose another folder with --out",
        )
    known = (out / names.RUN_TOML).exists()
    if resume and not known:
        raise ConfigError(f"there is no run to resume in {out}", "leave out --resume")
    # A run that failed before its first checkpoint may be begun again in place.
    begun = (out / names.CHECKPOINTS).exists()
    if not resume and (begun or (not known and _holds_more(out))):
        raise ConfigError(
            f"the run folder {out} is not empty",
            "go on with the command that began it and --resume, or name another --out",
        )


def _holds_more(out: Path) -> bool:
    # A crash may leave the lock and a temporary file of the first one that is written.
    ours = (names.LOCK, f".{names.RUN_TOML}.", ".writable.")
    return out.is_dir() and not all(path.name.startswith(ours) for path in out.iterdir())


def config_digest(config: RunConfig) -> str:
    """Return the SHA-256 of what must not change between start and resume, wherever it lies."""
    return _digest_of_names(config, _name)


def _digest_of_names(config: RunConfig, name: Callable[[str], str]) -> str:
    values = _decisive(config)
    values["model"].pop("path")
    if "start" in values["model"]:
        values["model"]["start"] = name(values["model"]["start"])
    if "public_texts" in (lora := values.get("lora", {})):
        lora["public_texts"] = name(lora["public_texts"])
    for key in _FILES:
        if key in values["data"]:
            values["data"][key] = name(values["data"][key])
    return _digest(values)


def _name(location: str) -> str:
    """Return what of a location says which records are there."""
    if "://" in location:
        # Who asks a database, and with which password, may change.
        place, mark, options = location.partition("?")
        scheme, _, rest = place.partition("://")
        return f"{scheme}://{rest.rpartition('@')[2]}{mark}{options}"
    # A pattern says by its folders which files it means.
    return location if has_magic(location) else Path(location).name


def is_same_run(digest: str, config: RunConfig, out: Path) -> bool:
    """Tell whether a checkpoint with ``digest`` was begun with ``config``.

    Checkpoints of earlier versions have a digest that counts locations, or of a pattern or a URL
    the last part alone; for them ``run.toml`` in ``out`` says with which configuration they were
    begun.
    """
    if digest in (config_digest(config), _digest(_decisive(config))):
        return True
    try:
        begun = read_config(out)
    except ConfigError:
        return False
    earlier = (_digest(_decisive(begun)), _digest_of_names(begun, lambda text: Path(text).name))
    return digest in earlier and config_digest(begun) == config_digest(config)


def require_same_run(
    digest: str, config: RunConfig, out: Path, anew: str = "start anew with another --out"
) -> None:
    """Refuse to resume a run with another configuration than its own.

    ``anew`` says how else to go on.

    Raises
    ------
    ConfigError
        If they differ in more than locations.
    """
    if is_same_run(digest, config, out):
        return
    own = out / names.RUN_TOML
    if _changed_since(digest, out):
        raise ConfigError(
            f"{own} was changed after the run had begun{_since_finished(out)}: the checkpoints "
            "were made with another configuration, and so is the one given now",
            "resume with the configuration file that the run was begun with, or a copy of "
            f"{own} from before; or {anew}",
        )
    raise ConfigError(
        f"{out} was begun with another configuration than the one given now"
        f"{_differing(config, out)}",
        f"resume with {own} and --out {out}, or {anew}",
    )


def _changed_since(digest: str, out: Path) -> bool:
    try:
        return not is_same_run(digest, read_config(out), out)
    except ConfigError:
        return False


def _since_finished(out: Path) -> str:
    """Name the keys of ``run.toml`` that a finished run's summary contradicts; nothing if none."""
    # Here alone: commands that refuse nothing need not wait for what mechanisms import.
    from fedllm.runs.asked import differences

    try:
        summary = read_summary(out).model_dump(mode="json", exclude_unset=True)
        found = differences(read_config(out), summary)
    except FedllmError:
        return ""
    return f" ({'; '.join(map(str, found[:8]))})" if found else ""


def _differing(config: RunConfig, out: Path) -> str:
    """Name the keys that differ from the folder's own configuration; nothing if it has none."""
    try:
        before = read_config(out).model_dump(mode="json")
    except ConfigError:
        return ""
    now = config.model_dump(mode="json")
    keys = [key for key in now if now[key] != before[key] and not isinstance(now[key], dict)]
    keys += [
        f"{section}.{key}"
        for section in now
        if isinstance(now[section], dict)
        for key in now[section]
        if now[section][key] != before[section][key]
    ]
    return f": {', '.join(sorted(keys)[:8])}" if keys else ""


def require_same_model(fingerprint: str, now: str, out: Path) -> None:
    """Refuse to resume a run on another base model than its own.

    Raises
    ------
    CheckpointError
        If the fingerprints differ; an empty one, of an earlier version, fits any.
    """
    if fingerprint not in ("", now):
        raise CheckpointError(
            f"{out} was begun with another base model: its fingerprint was {fingerprint[:16]}, "
            f"that of model.path is {now[:16]}",
            "set model.path to the folder of the model that the run began with",
        )


def require_same_public(state: RunState, labels: Sequence[str], test: str, out: Path) -> None:
    """Refuse to resume a run with another set of labels, or another public test file.

    Labels in another order would give the head's rows to other classes, and another test file
    would go on a curve that the first one began.

    Parameters
    ----------
    state : RunState
        The newest checkpoint's; one of an earlier version fits any.
    labels : sequence of str
        The set now, in the head's order.
    test : str
        SHA-256 of what the test file holds now; empty without one.

    Raises
    ------
    ConfigError
        Says which of both differs.
    """
    remedy = "give the data.labels and the data.test file that the run began with"
    if state.labels is not None and state.labels != tuple(labels):
        raise ConfigError(
            f"{out} was begun with another set of labels: it has {len(state.labels)}, data.labels "
            f"or data.test now give {len(labels)}, or the same in another order",
            remedy,
        )
    if state.test not in (None, test):
        raise ConfigError(f"{out} was begun with another public test file (data.test)", remedy)


def write_config(out: Path, config: RunConfig) -> None:
    """Write ``run.toml``, readable by its owner alone: a data URL may hold a password."""
    write_bytes(out / names.RUN_TOML, to_toml(config).encode(), mode=0o600)


def finished_summary(out: Path, rounds: int, state: RunState | None) -> Summary | None:
    """Return the summary of a run that has written all it leaves; None where anything is left."""
    last = (names.ADAPTER, names.SUMMARY, names.REPORT)
    if state is None or state.round < rounds or not all((out / name).exists() for name in last):
        return None
    try:
        summary = read_summary(out)
    except FedllmError:
        # A damaged one is written again.
        return None
    return summary if summary.run_id == state.run else None


def _decisive(config: RunConfig) -> dict[str, Any]:
    # Without what stands at its default: a newer version of the software, with keys that this
    # run never set, can resume it.
    return config.model_dump(mode="json", exclude={"engine"}, exclude_defaults=True)


def _digest(values: object) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
