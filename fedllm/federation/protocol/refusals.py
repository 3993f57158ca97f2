"""How a party's errors travel: their kind, and words that say nothing about its data."""

from __future__ import annotations

from typing import ClassVar

from fedllm.errors import (
    BudgetError,
    ConfigError,
    DataError,
    FedllmError,
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
    DataError,
    ConfigError,
    TrainingError,
    StorageError,
    PeerError,
    RepeatError,
)


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
    def of(cls, error: BaseException, full_text: bool, whose: str = "the site") -> Refusal:
        """Describe an error; private text is left out unless ``full_text``.

        The words of a refusal by policy or budget, or of something twice, speak of public
        numbers only and always travel; every other error shrinks to its kind. ``whose`` log has
        the details, it says then.
        """
        names = (kind.__name__ for kind in type(error).__mro__)
        kind = next((name for name in names if name in cls._KINDS), "FedllmError")
        # Subclasses, such as the ledger's own refusals, may name files of the site.
        public = type(error) in (RefusedError, BudgetError, RepeatError)
        if isinstance(error, FedllmError) and (full_text or public):
            return cls(kind=kind, message=error.message, remedy=error.remedy)
        if full_text:
            return cls(kind=kind, message=f"{type(error).__name__}: {error}")
        return cls(kind=kind, message=kind, remedy=f"{whose}'s own log has the details")

    def to_error(self, who: str) -> FedllmError:
        """Return the error that this refusal stands for."""
        kind = self._KINDS.get(self.kind, FedllmError)
        return kind(f"{who}: {self.message}", self.remedy)
