"""A site's training in one round."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedllm.config.section import PositiveFloat, PositiveInt, Section


class TrainingSection(Section):
    """What one site does in one round.

    Attributes
    ----------
    local_steps : int
        Optimiser steps a site takes in a round.
    batch_size : int
        Expected records of a Poisson-sampled batch. With distributed noise it is the
        public constant that the sum is divided by, for each site. With local noise and "sgd"
        a site that expects less than half of it divides by that half.
    sampling_rate : float, optional
        Probability of each record to be in a batch. Left out, a site takes
        ``batch_size`` divided by the number of its records (at most 1).
    microbatch_size : int
        Records worked on at once; bounds memory, changes no result. In a private step those of
        one record or person.
    activation_checkpointing : bool
        Whether a trained layer keeps only what enters it, and is run again for its gradient:
        less memory for long texts and many trained layers, about a third more time, the same
        result.
    sampled_words : int, optional
        For tasks of a decoder's next token: in training a token is compared with so many words,
        drawn anew each round, the likelier ones more often, and not with the whole vocabulary, if
        that is larger.
        Less work where the vocabulary is large (32768 of Gemma's 262144 words: about a third of
        the time), a slightly noisier gradient. Evaluation compares with all.
    optimizer : {"adam", "sgd"}
        The site's own optimiser, started anew each round.
    learning_rate : float
        Its step size.
    head_learning_rate : float, optional
        The same for the classification head; ``learning_rate`` when left out.
    """

    local_steps: Annotated[int, Field(ge=1, le=100_000)] = 10
    batch_size: PositiveInt = 64
    sampling_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    microbatch_size: PositiveInt = 64
    activation_checkpointing: bool = False
    sampled_words: Annotated[int, Field(ge=64)] | None = None
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: PositiveFloat = 1e-3
    head_learning_rate: PositiveFloat | None = None
