"""The state of a run after a finished round, durable and checked when it is read."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedllm.at_rest.stream import SealedError
from fedllm.at_rest.vault import KEYRING, Vault
from fedllm.canonical import UNREADABLE
from fedllm.errors import CheckpointError, ConfigError, FedllmError
from fedllm.files import atomic_directory, recover_directory, write_bytes, write_json
from fedllm.runs.metrics import RoundReport
from fedllm.runs.plain_json import finite, read_object

_NAME = re.compile(r"^round-(\d{5})$")
# A crash between the two renames of an exchange leaves the folder under this name.
_RETIRED = re.compile(r"^round-(\d{5})\.old$")
# And one in the midst of writing leaves this.
_UNFINISHED = re.compile(r"^\.round-\d{5}\..+$")
_KEEP = 2
_LENGTH_BYTES = 8
_HEADER, _ARRAYS, _SEALED = "state.json", "state.npz", "state.sealed"
# What checkpoints are sealed for, and where they lie below a coordinator's folder ``state``.
PURPOSE, FILES = "checkpoint", f"runs/*/checkpoints/round-?????/{_SEALED}"


@dataclass(frozen=True)
class Good:
    """The last adapter that the public test file did not object to.

    Attributes
    ----------
    round : int
        That it is from.
    loss : float
        The best on the public test file so far, of this adapter or one before.
    adapter : float32 array (P,)
        Where the run goes on after a rollback.
    optimizer : dict of str to arrays
        State of the coordinator's optimiser then.
    """

    round: int
    loss: float
    adapter: NDArray[np.float32]
    optimizer: dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class RunState:
    """Everything a coordinator needs to go on.

    Attributes
    ----------
    run : str
        Random identifier of the run, the same after each resume.
    round : int
        Last finished round; 0 before the first.
    noise : tuple of float
        For each attempt of a round so far, finished or not, the noise multiplier that was
        announced (distributed noise); 0 where the sites choose their own.
    config : str
        SHA-256 of what must not change between start and resume.
    adapter : float32 array (P,)
        The shared adapter.
    optimizer : dict of str to arrays
        State of the coordinator's optimiser.
    model : str
        Fingerprint of the base model; empty in checkpoints of earlier versions.
    report : RoundReport, optional
        What is known of round ``round``, whose line may be missing in ``metrics.jsonl``.
    labels : tuple of str, optional
        The public set in the order of the model's head; None in checkpoints of earlier versions.
    test : str, optional
        SHA-256 of what the public test file holds, empty without one; None in checkpoints of
        earlier versions.
    good : Good, optional
        None before the first evaluation on the public test file, and without one.
    started_from : dict, optional
        What is said of the adapter that the run began with (`fedllm.runs.start`); None where it
        was an untrained one.
    """

    run: str
    round: int
    noise: tuple[float, ...]
    config: str
    adapter: NDArray[np.float32]
    optimizer: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    model: str = ""
    report: RoundReport | None = None
    labels: tuple[str, ...] | None = None
    test: str | None = None
    good: Good | None = None
    started_from: dict[str, Any] | None = None


def save_checkpoint(folder: Path, state: RunState, vault: Vault | None = None) -> Path:
    """Write ``folder/round-NNNNN`` and remove all but the two newest.

    Parameters
    ----------
    vault : Vault, optional
        Seals the arrays: the adapters and the optimiser's state.

    Raises
    ------
    FedllmError
        If the disk is full; earlier checkpoints are untouched.
    """
    buffer = io.BytesIO()
    good = state.good
    named: dict[str, Any] = {"adapter": state.adapter, **_named("optimizer.", state.optimizer)}
    if good is not None and good.round != state.round:
        named |= {"good.adapter": good.adapter, **_named("good.optimizer.", good.optimizer)}
    np.savez(buffer, **named)
    arrays = buffer.getvalue()
    target = folder / f"round-{state.round:05d}"
    with atomic_directory(target) as temporary:
        write_json(
            temporary / _HEADER,
            {
                "run": state.run,
                "round": state.round,
                "noise": list(state.noise),
                "config": state.config,
                "model": state.model,
                "report": finite(state.report.model_dump()) if state.report else None,
                "labels": None if state.labels is None else list(state.labels),
                "test": state.test,
                # Left out without one, as before there was any.
                **({"good": {"round": good.round, "loss": good.loss}} if good else {}),
                **({"started_from": state.started_from} if state.started_from else {}),
                "sha256": hashlib.sha256(arrays).hexdigest(),
            },
        )
        if vault is None:
            write_bytes(temporary / _ARRAYS, arrays)
        else:
            content = _with_header(temporary / _HEADER, arrays)
            sealed = vault.sealed(target / _SEALED, PURPOSE, content)
            write_bytes(temporary / _SEALED, sealed, mode=0o600)
    for old in _rounds(folder)[:-_KEEP]:
        shutil.rmtree(folder / f"round-{old:05d}", ignore_errors=True)
    return target


def load_checkpoint(folder: Path, vault: Vault | None = None) -> RunState | None:
    """Read the newest checkpoint under ``folder``; None when there is none.

    With a ``vault`` it must be sealed, without one it must not.

    Raises
    ------
    CheckpointError
        If the newest one is damaged: the reader decides whether to go back further, since
        repeating a round spends privacy again.
    SealedError
        If it is sealed, and does not open.
    """
    for retired in folder.glob("round-*.old"):
        recover_directory(retired.with_suffix(""))
    rounds = _rounds(folder)
    if not rounds:
        return None
    path = folder / f"round-{rounds[-1]:05d}"
    try:
        arrays = _arrays(path, vault)
        header = read_object(path / _HEADER)
        report, labels, test = (header.get(name) for name in ("report", "labels", "test"))
        if hashlib.sha256(arrays).hexdigest() != header["sha256"]:
            raise ValueError("its checksum does not fit")
        with np.load(io.BytesIO(arrays), allow_pickle=False) as stored:
            named = {name: stored[name] for name in stored.files}
        adapter, optimizer = named["adapter"], _inside("optimizer.", named)
        return RunState(
            run=str(header["run"]),
            round=int(header["round"]),
            noise=tuple(float(x) for x in header["noise"]),
            config=str(header["config"]),
            adapter=adapter,
            optimizer=optimizer,
            model=str(header.get("model", "")),
            report=None if report is None else RoundReport.parse(report, "report"),
            labels=None if labels is None else tuple(str(label) for label in labels),
            test=None if test is None else str(test),
            good=_good(header, named),
            started_from=dict(header["started_from"]) if "started_from" in header else None,
        )
    except SealedError:
        # Whether it is damaged, who has not the key cannot tell.
        raise
    except (OSError, EOFError, *UNREADABLE, FedllmError) as error:
        raise CheckpointError(
            f"the checkpoint {path} is damaged ({_first_line(error)})",
            f"remove that folder to go on from the one before (round "
            f"{rounds[-2] if len(rounds) > 1 else 0}); a round that is repeated is charged again",
        ) from None


def _arrays(path: Path, vault: Vault | None) -> bytes:
    sealed = (path / _SEALED).exists()
    if vault is not None and sealed:
        content, header = vault.read(path / _SEALED, PURPOSE), (path / _HEADER).read_bytes()
        if not content.startswith(_with_header(path / _HEADER, b"")):
            raise SealedError(
                f"{path / _HEADER} is not what was written beside the sealed checkpoint",
                "restore the folder of the checkpoint from a backup",
            )
        return content[_LENGTH_BYTES + len(header) :]
    if sealed:
        raise SealedError(
            f"the checkpoint {path} is sealed with the keys of a coordinator's kit",
            "resume it with the coordinator of that kit, in its own folder",
        )
    if vault is not None and (path / _ARRAYS).exists():
        # Anybody who can write the disk may have put it there.
        raise SealedError(
            f"the checkpoint {path} is in clear, and this kit seals checkpoints",
            "give fedllm server rekey once more, which seals what was there before",
        )
    return (path / _ARRAYS).read_bytes()


def _with_header(header: Path, arrays: bytes) -> bytes:
    """Return what is sealed: the length of the readable part, that part, and the arrays."""
    text = header.read_bytes()
    return len(text).to_bytes(_LENGTH_BYTES, "big") + text + arrays


def recover_checkpoints(state: Path) -> None:
    """Undo what a kill left of checkpoints of a coordinator's runs; its service must not run.

    What lies under another name than the one that it was sealed for opens with no key any more.
    ``state`` is the folder of its kit.

    Raises
    ------
    ConfigError
        As `require_ring`.
    """
    require_ring(state)
    for folder in state.glob("runs/*/checkpoints"):
        for path in sorted(folder.iterdir()):
            if _RETIRED.match(path.name):
                recover_directory(path.with_suffix(""))
            elif _UNFINISHED.match(path.name):
                shutil.rmtree(path, ignore_errors=True)


def require_ring(state: Path) -> None:
    """Refuse sealed checkpoints of a coordinator's runs whose ring of keys is gone.

    Those in clear would be taken from then on, by whomever they are.

    Raises
    ------
    ConfigError
    """
    if not (state / KEYRING).exists() and any(state.glob(f"runs/*/checkpoints/*/{_SEALED}")):
        raise ConfigError(
            f"{state / KEYRING} is gone, without which nothing sealed there opens",
            "restore it from its backup, or remove the sealed checkpoints and begin the runs anew",
        )


def seal_checkpoints(state: Path, vault: Vault) -> list[Path]:
    """Seal what checkpoints of a coordinator's runs hold in clear; return which these were.

    ``state`` is the folder of its kit. Cut off, it is finished by calling it again.
    """
    done = []
    for clear in sorted(state.glob(FILES.replace(_SEALED, _ARRAYS))):
        content = _with_header(clear.with_name(_HEADER), clear.read_bytes())
        vault.write(clear.with_name(_SEALED), PURPOSE, content)
        clear.unlink()
        done.append(clear.with_name(_SEALED))
    return done


def _good(header: dict[str, Any], named: dict[str, Any]) -> Good | None:
    told = header.get("good")
    if told is None:
        return None
    number, loss = int(told["round"]), float(told["loss"])
    # Where the last round was good, its arrays are there once.
    prefix = "" if number == header["round"] else "good."
    optimizer = _inside(f"{prefix}optimizer.", named)
    return Good(number, loss, named[f"{prefix}adapter"], optimizer)


def _named(prefix: str, arrays: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
    return {prefix + name: array for name, array in arrays.items()}


def _inside(prefix: str, named: dict[str, Any]) -> dict[str, Any]:
    return {
        name.removeprefix(prefix): array for name, array in named.items() if name.startswith(prefix)
    }


def begun_with(folder: Path) -> str | None:
    """Return the digest of the configuration that the newest checkpoint was made with.

    None when there is no checkpoint. Changes nothing in the folder, so that it may be evidence.

    Raises
    ------
    CheckpointError
        If it cannot be read.
    """
    rounds = _rounds(folder)
    if not rounds:
        return None
    path = folder / f"round-{rounds[-1]:05d}" / _HEADER
    try:
        return str(read_object(path)["config"])
    except (KeyError, FedllmError):
        raise CheckpointError(
            f"the checkpoint {path.parent} is damaged", "restore it from a backup"
        ) from None


def newest_round(folder: Path) -> int | None:
    """Return the number of the newest checkpoint's round, without reading it."""
    return max([*_rounds(folder), *_rounds(folder, _RETIRED)], default=None)


def _first_line(error: Exception) -> str:
    return error.message if isinstance(error, FedllmError) else str(error)


def _rounds(folder: Path, name: re.Pattern[str] = _NAME) -> list[int]:
    if not folder.is_dir():
        return []
    matches = (name.match(path.name) for path in folder.iterdir() if path.is_dir())
    return sorted(int(match[1]) for match in matches if match)
