"""What stands on top of the base Transformer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LabelHead:
    """A linear head that is trained, with one output for each label; goes on any base.

    Attributes
    ----------
    labels : tuple of str
        At least two, in the order of the outputs.
    """

    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LanguageHead:
    """The base's own head for the next token, frozen; the base must be causal.

    Attributes
    ----------
    prompted : bool
        Whether what is learned answers a prompt, so that an encoder may read the one and a
        decoder write the other.
    """

    prompted: bool = False


@dataclass(frozen=True, slots=True)
class TokenHead:
    """A linear head on each token that is trained; goes on any base.

    Attributes
    ----------
    labels : tuple of str
        At least one.
    tagging : str
        By which scheme tags say where spans of a label are.
    outputs : int
        Tags, in the scheme's order.
    """

    labels: tuple[str, ...]
    tagging: str
    outputs: int


@dataclass(frozen=True, slots=True)
class RewardHead:
    """A linear head that gives a whole text one number, trained; goes on any base.

    Only differences of what it gives have a meaning, so that a bias would say nothing.

    Attributes
    ----------
    labels : tuple of str
        None.
    outputs : int
    """

    labels: tuple[str, ...] = ()
    outputs: int = 1


Head = LabelHead | LanguageHead | TokenHead | RewardHead
