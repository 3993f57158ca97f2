"""The errors of fedllm: each says what happened and what to do, and maps to one exit code."""

from __future__ import annotations

import errno

from fedllm.visible import visible

_MAX_LETTERS = 4000
# What the system says of a path that was given wrongly, and not of a full or broken disk.
_WRONG_PATH = {
    errno.EACCES,
    errno.EEXIST,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ENOTEMPTY,
    errno.EPERM,
    errno.EROFS,
}


def _printable(text: str) -> str:
    """Return text without what would steer a terminal, and not too much of it."""
    cut = text if len(text) <= _MAX_LETTERS else f"{text[:_MAX_LETTERS]} ..."
    return visible(cut, keep="\n")


def one_line(text: str, letters: int = 600) -> str:
    """Return text that cannot pass for two lines of a journal, nor fill it."""
    line = " ".join(_printable(text).split())
    return line if len(line) <= letters else f"{line[:letters]} ..."


class FedllmError(Exception):
    """Base of every error that fedllm raises on purpose.

    Parameters
    ----------
    message : str
        What happened, in words that hold no private text.
    remedy : str, optional
        What the reader can do about it.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        # Words of another party may stand in it, and it ends on a terminal.
        self.message = message = _printable(message)
        self.remedy = remedy = _printable(remedy)
        super().__init__(f"{message}\n  -> {remedy}" if remedy else message)

    def __reduce__(self) -> tuple[type[FedllmError], tuple[str, str]]:
        """Survive pickling between processes with both parts intact."""
        return type(self), (self.message, self.remedy)


class InterruptedRunError(FedllmError):
    """Somebody pressed Ctrl-C, and there is something to say about what goes on or is kept."""

    exit_code = 130


class ConfigError(FedllmError):
    """A configuration, a command line or an input file is wrong."""

    exit_code = 2


def of_system(error: OSError, message: str, remedy: str) -> FedllmError:
    """Return the error that a failed call to the system stands for.

    For what a command was just told to read or write: a wrong path is the mistake of whoever
    gave it (`ConfigError`); a full disk is not (`StorageError`).
    """
    kind = ConfigError if error.errno in _WRONG_PATH else StorageError
    return kind(message, remedy)


class DataError(ConfigError):
    """A data source cannot be read as the configuration says."""


class RefusedError(FedllmError):
    """A policy, a budget or a signature forbids what was asked."""

    exit_code = 3


class BudgetError(RefusedError):
    """A site's privacy budget does not allow the request."""


class PausedError(RefusedError):
    """A site begins no round, because its own people say so."""


class PeerError(FedllmError):
    """Another party sent something it must not send, or nothing at all."""

    exit_code = 4


class RepeatError(PeerError):
    """A party was asked a second time for what it does once; the next attempt may succeed."""


class CheckpointError(ConfigError):
    """A checkpoint or model folder is missing, damaged or of another model."""


class StorageError(FedllmError):
    """A disk is full, or a file of this party's own cannot be read or written."""


class TrainingError(FedllmError):
    """Training gave a result that must not be released."""


class ShortOfMemoryError(FedllmError):
    """Work found too little memory, and again when all was given back that could be.

    It ends what it is part of, however many records that has: what a machine has room for must
    not decide which of them count.
    """


# Orders to stop, and no failures of the work. Everything else that a library raises is one, also
# what is no `Exception`: a panic of the tokenizers, which are written in Rust, is none.
STOPPING = (KeyboardInterrupt, SystemExit, GeneratorExit)
# Nor is a lack of memory a failure of the unit at which it shows.
ENDING = (*STOPPING, ShortOfMemoryError)
