"""Let a language model write: batches of prompts, a key-value cache, ends, chance, streaming.

transformers' own ``generate`` does the work: it knows each architecture's cache, windows and
positions. What it draws, and where a text ends, is decided by parts of ours that it calls at each
token, because its own know one way for a whole batch: `DrawnTokens` and `Transcript`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from fedllm.errors import ConfigError
from fedllm.models.drawing import LIKELIEST, Drawing, DrawnTokens, Sampling
from fedllm.models.transcript import Finish, Transcript

# Sequences that are written at once, if nothing else is said.
ROWS = 16
# Lengths of the prompts by which it is tried whether padding changes what is written.
_TRIED = (2, 5)
_CLOSE = 1e-3

Tokens = Sequence[int]
# Told which prompt it is of, and the next piece of its text.
Heard = Callable[[int, str], None]
# Says at each token whether nobody waits for the text of a prompt any more.
GivenUp = Callable[[int], bool]


@dataclass(frozen=True)
class Writing:
    """How much is written, where it ends, and how tokens are chosen.

    Attributes
    ----------
    new_tokens : int
        At most so many.
    stops : tuple of str
        Texts that end what is written; they are no part of it.
    sampling : Sampling
        How each token is chosen.

    Raises
    ------
    ConfigError
        If there is nothing to write, or a stop is empty.
    """

    new_tokens: int = 256
    stops: tuple[str, ...] = ()
    sampling: Sampling = LIKELIEST

    def __post_init__(self) -> None:
        if self.new_tokens < 1:
            raise ConfigError(
                f"{self.new_tokens} new tokens are nothing to write", "give 1 or more"
            )
        if "" in self.stops:
            raise ConfigError("a stop text is empty", "give a text that ends what is written")


@dataclass(frozen=True, slots=True)
class Completion:
    """What was written after a prompt.

    Attributes
    ----------
    text : str
        Without what ended it.
    tokens : tuple of int
        Likewise.
    finish : {"stop", "length"} or None
        Whether the model, or a stop text, ended it, or it came to its largest length; None where
        it was given up.
    """

    text: str
    tokens: tuple[int, ...]
    finish: Finish | None


class Generator:
    """A model with a language model head, and the tokens that end what it writes.

    Parameters
    ----------
    network : PreTrainedModel
        Decoder or encoder-decoder, perhaps with adapters in it.
    tokenizer : PreTrainedTokenizerBase
        Of the model.
    ends : sequence of int
        Tokens that end a text.
    """

    def __init__(
        self, network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]
    ) -> None:
        self.network = network
        self.tokenizer = tokenizer
        self.ends = frozenset(ends)
        self._prompted = bool(network.config.is_encoder_decoder)

    @property
    def positions(self) -> int | None:
        """Most tokens of prompt and text together; None where the model sets no limit."""
        longest = getattr(self.network.config, "max_position_embeddings", None)
        return None if longest is None else int(longest)

    def room(self, prompt: Tokens) -> int | None:
        """Return how many tokens can follow a prompt; None where the model sets no limit.

        Raises
        ------
        ConfigError
            If the prompt is empty, longer than the model can read, or leaves no room.
        """
        if not prompt:
            raise ConfigError("a prompt has no tokens", "give a prompt that is not empty")
        if self.positions is None:
            return None
        taken = 1 if self._prompted else len(prompt)
        if len(prompt) + self._prompted > self.positions or taken >= self.positions:
            raise ConfigError(
                f"a prompt of {len(prompt)} tokens leaves no room in a model of {self.positions}",
                "give a shorter prompt",
            )
        return self.positions - taken

    def write(
        self,
        prompts: Sequence[Tokens],
        writing: Writing | Sequence[Writing],
        heard: Heard = lambda number, piece: None,
        rows: int = ROWS,
    ) -> list[Completion]:
        """Complete prompts.

        Which others a prompt is completed with changes nothing but the rounding of numbers.

        Parameters
        ----------
        prompts : sequence of sequences of int
            Tokens; an encoder-decoder's without the end that its encoder reads.
        writing : Writing, or one a prompt
        heard : callable
            Told pieces of text as they come.
        rows : int
            Prompts completed at once.

        Raises
        ------
        ConfigError
            See `room`.
        """
        found = dict(self.each(prompts, writing, heard, rows))
        return [found[number] for number in range(len(prompts))]

    def each(
        self,
        prompts: Sequence[Tokens],
        writing: Writing | Sequence[Writing],
        heard: Heard = lambda number, piece: None,
        rows: int = ROWS,
        given_up: GivenUp = lambda number: False,
    ) -> Iterator[tuple[int, Completion]]:
        """Yield which prompt it is and its completion, as they are finished; see `write`.

        Parameters
        ----------
        given_up : callable
            Whether a prompt's text need not be written on.
        """
        ways = [writing] * len(prompts) if isinstance(writing, Writing) else list(writing)
        for part in self._batches(self._sequences(prompts, ways, heard), rows):
            with self._evaluating():
                self._run(part, given_up)
            for s in part:
                done = s.transcript
                yield (
                    s.number,
                    Completion(
                        done.text,
                        tuple(done.tokens),
                        done.finish or (None if given_up(s.number) else "stop"),
                    ),
                )

    def _sequences(
        self, prompts: Sequence[Tokens], ways: Sequence[Writing], heard: Heard
    ) -> list[_Sequence]:
        seen: dict[tuple[int | None, tuple[int, ...]], int] = {}
        found = []
        for number, (prompt, way) in enumerate(zip(prompts, ways, strict=True)):
            room = self.room(prompt)
            most = way.new_tokens if room is None else min(way.new_tokens, room)
            known = (way.sampling.seed, tuple(prompt))
            repeat = seen[known] = seen.get(known, -1) + 1
            found.append(
                _Sequence(
                    number,
                    tuple(prompt),
                    way.sampling.drawing(prompt, repeat),
                    Transcript(self.tokenizer, self.ends_of(way), way.stops, most),
                    most,
                    heard,
                )
            )
        return found

    def ends_of(self, way: Writing) -> frozenset[int]:
        """Return the tokens that end a text: a stop may be one that no decoded text shows."""
        added = self.tokenizer.get_added_vocab() if way.stops else {}
        return self.ends | {added[stop] for stop in way.stops if stop in added}

    def _batches(self, sequences: Sequence[_Sequence], rows: int) -> Iterator[list[_Sequence]]:
        """Put prompts of similar length together; of equal length, where padding is not ignored."""
        groups: dict[int, list[_Sequence]] = {}
        unequal = len({len(s.prompt) for s in sequences}) > 1
        together = not unequal or self.ignores_padding
        for sequence in sorted(sequences, key=lambda s: len(s.prompt)):
            groups.setdefault(0 if together else len(sequence.prompt), []).append(sequence)
        for group in groups.values():
            for start in range(0, len(group), rows):
                yield group[start : start + rows]

    @cached_property
    def ignores_padding(self) -> bool:
        """Whether a padded prompt gives the same as alone: tried, for some models count it."""
        tokens = [t for t in range(len(self.tokenizer)) if t not in self.ends][: max(_TRIED)]
        prompts = [[tokens[place % len(tokens)] for place in range(size)] for size in _TRIED]
        with self._evaluating():
            together = self._first_logits(prompts)[0]
            alone = self._first_logits(prompts[:1])[0]
        return bool((together - alone).abs().max() <= _CLOSE * alone.abs().max().clamp(min=1))

    @torch.no_grad()
    def _first_logits(self, prompts: Sequence[Tokens]) -> Tensor:
        kept = _Kept()
        self._generate(prompts, LogitsProcessorList([kept]), StoppingCriteriaList(), 1)
        return kept.scores

    def _run(self, part: Sequence[_Sequence], given_up: GivenUp) -> None:
        drawn = DrawnTokens([s.drawing for s in part])
        self._generate(
            [s.prompt for s in part],
            LogitsProcessorList([drawn]),
            StoppingCriteriaList([_Ends(part, given_up)]),
            max(s.most for s in part),
        )

    def _generate(
        self,
        prompts: Sequence[Tokens],
        processors: LogitsProcessorList,
        stopping: StoppingCriteriaList,
        most: int,
    ) -> None:
        config = self.network.config
        pad = _token(self.tokenizer.pad_token_id, config.pad_token_id, min(self.ends, default=0))
        ids, mask = self.padded(prompts, pad)
        self._network.generate(
            ids,
            attention_mask=mask,
            generation_config=GenerationConfig(
                max_new_tokens=most,
                do_sample=False,
                use_cache=True,
                pad_token_id=pad,
                decoder_start_token_id=getattr(config, "decoder_start_token_id", None),
            ),
            logits_processor=processors,
            stopping_criteria=stopping,
        )

    def padded(self, prompts: Sequence[Tokens], pad: int) -> tuple[Tensor, Tensor]:
        """Return ids and mask (B, T): padded on the left, so that each row goes on at its end.

        What an encoder reads is padded on the right, as in training, and ends with its end token.
        """
        rows = [list(p) for p in prompts]
        if self._prompted:
            rows = [[*row, int(self.network.config.eos_token_id)] for row in rows]
        width = max(map(len, rows))
        filled = [[pad] * (width - len(row)) for row in rows]
        masks = [([0] * len(f), [1] * len(row)) for f, row in zip(filled, rows, strict=True)]
        if self._prompted:
            ids = [row + f for f, row in zip(filled, rows, strict=True)]
            mask = [present + absent for absent, present in masks]
        else:
            ids = [f + row for f, row in zip(filled, rows, strict=True)]
            mask = [absent + present for absent, present in masks]
        device = self.network.device
        return torch.tensor(ids, device=device), torch.tensor(mask, device=device)

    @property
    def _network(self) -> Any:
        return cast(Any, self.network)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        training = self.network.training
        self.network.eval()
        try:
            yield
        finally:
            self.network.train(training)


@dataclass(frozen=True, eq=False)
class _Sequence:
    number: int
    prompt: tuple[int, ...]
    drawing: Drawing
    transcript: Transcript
    most: int
    heard: Heard

    def push(self, token: int) -> bool:
        """Take the next token; say whether the text has ended."""
        piece = self.transcript.push(token)
        if piece:
            self.heard(self.number, piece)
        return self.transcript.finish is not None


class _Ends(StoppingCriteria):
    """Hands each row's last token to its text, and says which rows have ended."""

    def __init__(self, part: Sequence[_Sequence], given_up: GivenUp) -> None:
        self._part = part
        self._given_up = given_up

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        last = input_ids[:, -1].tolist()
        ended = [
            s.push(token) or self._given_up(s.number)
            for s, token in zip(self._part, last, strict=True)
        ]
        return torch.tensor(ended, device=input_ids.device)


class _Kept(LogitsProcessor):
    """Keeps the logits (B, V) of the first token."""

    scores: Tensor

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self.scores = scores.clone()
        return scores


def _token(*choices: int | None) -> int:
    return next(int(choice) for choice in choices if choice is not None)
