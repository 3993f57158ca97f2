"""How a party's errors travel: their kind, and words that say nothing about its data."""

from __future__ import annotations

from typing import ClassVar

from fedllm.errors import (
    BudgetError,
    ConfigError,
    DataError,
    FedllmError,
    PausedError,
    PeerError,
    RefusedError,
    RepeatError,
    StorageError,
    TrainingError,
)
from fedllm.federation.protocol.wire import Header

_TRAVELLING = (
    RefusedError,
    BudgetError,
    PausedError,
    DataError,
    ConfigError,
    TrainingError,
    StorageError,
    PeerError,
    RepeatError,
)


# What a site says of each kind. Its own words would speak of its policy, its budget or its size.
_SITES_WORDS: dict[type[FedllmError], str] = {
    BudgetError: "the run does not fit what the site may spend",
    PausedError: "the site has paused: it begins no round until its people say so",
    RefusedError: "the site's policy, or what it has done before, does not allow this",
    DataError: "the site's records are not there",
    ConfigError: "the run's configuration does not fit the site",
    TrainingError: "the shared model cannot be trained from this adapter",
    StorageError: "a disk of the site is full, or a file of its own is not in order",
    RepeatError: "the site was asked before for what it does once",
    PeerError: "what the site was sent is not what was agreed",
    FedllmError: "the site broke off",
}


class Refusal(Header):
    """Why a party did not do what it was asked, without a word about its data.

    Attributes
    ----------
    kind : str
        Name of the error class; decides the exit code.
    message, remedy : str
        Words for a person.
    """

    kind: str
    message: str
    remedy: str = ""

    _KINDS: ClassVar[dict[str, type[FedllmError]]] = {kind.__name__: kind for kind in _TRAVELLING}

    @classmethod
    def of_site(cls, error: BaseException, full_text: bool) -> Refusal:
        """Describe a site's error by its kind alone, unless ``full_text`` (simulation).

        A site's own words would quote its ceilings, or noise that follows from its size.
        """
        if full_text:
            return cls.whole(error)
        kind = _kind_of(error)
        return cls(
            kind=kind.__name__,
            message=_SITES_WORDS[kind],
            remedy="the site's own log has the details; ask its operator",
        )

    @classmethod
    def of_authority(cls, error: BaseException, full_text: bool) -> Refusal:
        """Describe an error of the key authority, which holds no record.

        The words of a refusal, or of something twice, speak of public numbers; every other
        error shrinks to its kind, unless ``full_text`` (simulation).
        """
        # Subclasses may name files of the party.
        if full_text or type(error) in (RefusedError, RepeatError):
            return cls.whole(error)
        kind = _kind_of(error).__name__
        return cls(kind=kind, message=kind, remedy="the key authority's own log has the details")

    @classmethod
    def whole(cls, error: BaseException) -> Refusal:
        """Describe an error in its own words, for a process of the same party."""
        kind = _kind_of(error).__name__
        if isinstance(error, FedllmError):
            return cls(kind=kind, message=error.message, remedy=error.remedy)
        return cls(kind=kind, message=f"{type(error).__name__}: {error}")

    def to_error(self, who: str) -> FedllmError:
        """Return the error that this refusal stands for."""
        kind = self._KINDS.get(self.kind, FedllmError)
        return kind(f"{who}: {self.message}", self.remedy)


def _kind_of(error: BaseException) -> type[FedllmError]:
    return next((kind for kind in type(error).__mro__ if kind in _TRAVELLING), FedllmError)
