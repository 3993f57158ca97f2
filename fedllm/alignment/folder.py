"""Who may work in an alignment's folder; without torch."""

from __future__ import annotations

from pathlib import Path

from fedllm.errors import ConfigError
from fedllm.runs import names

# What is written last: the card of the adapter.
_CARD = "README.md"


def check_folder(out: Path, resume: bool) -> None:
    """Refuse a folder in which an alignment can neither begin nor go on; writes nothing.

    Raises
    ------
    ConfigError
        If it is a file, holds something else, or has no alignment to resume.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file", "choose another folder with --out")
    known = (out / names.ALIGN_TOML).exists()
    if resume and not known:
        raise ConfigError(f"there is no alignment to resume in {out}", "leave out --resume")
    begun = (out / names.CHECKPOINTS).exists()
    if not resume and (begun or (not known and _holds_more(out))):
        raise ConfigError(
            f"the folder {out} is not empty",
            "go on with the command that began it and --resume, or name another --out",
        )


def _holds_more(out: Path) -> bool:
    # One that was refused, or a crash, may leave these.
    ours = (names.LOCK, f".{names.ALIGN_TOML}.", ".writable.")
    return out.is_dir() and not all(path.name.startswith(ours) for path in out.iterdir())


def is_finished(out: Path) -> bool:
    """Tell whether an alignment has left all that it leaves."""
    return (out / names.SUMMARY).exists() and (out / names.ADAPTER / _CARD).exists()
