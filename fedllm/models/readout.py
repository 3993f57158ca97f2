"""From the states after the last layer to the loss of each next token, a piece of tokens at a time.

The logits of all tokens of a text are by far the largest tensors of a small model with a large
vocabulary (Gemma: 262,144 words, one megabyte a token). They are needed where a token counts, and
of a piece of these at a time: a frozen head's gradient by a token's state is taken at once, as
"Cut your losses" (Wijmans et al. 2024) and Liger's kernels do, and the piece's logits are
forgotten.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.functional import linear, log_softmax
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, ModelOutput

from fedllm.models.sampled_words import Words
from fedllm.models.transformer import Batch

# Logits of one piece; their gradients are as many bytes again.
LOGITS_AT_ONCE_BYTES = 1 << 27
# Of these as many as stay in a processor's own memory while they are gone through.
_ROWS_AT_ONCE = 8
# So few that the trial of a model's parts has several pieces.
_TRIED_AT_ONCE = 3


class _Reached(Exception):
    def __init__(self, output: ModelOutput) -> None:
        self.output = output


class Readout:
    """What a language model's own forward pass makes of the states after its last layer.

    It scales logits, cuts them off, adds a bias or leaves them as they are; so it is run itself,
    with a part below the head that hands on the states that it is told.

    Parameters
    ----------
    model : PreTrainedModel
        Decoder or encoder-decoder with its frozen head.
    top : nn.Module
        The part of it that gives the states which enter the head.
    """

    def __init__(self, model: PreTrainedModel, top: nn.Module) -> None:
        self._model = model
        self._top = top
        self._kind: type[ModelOutput] = BaseModelOutput
        self._some: _Some | None = None
        head = cast(nn.Linear, model.get_output_embeddings())
        # Integers give numbers of four bytes.
        size = head.weight.itemsize if head.weight.is_floating_point() else 4
        words = getattr(head, "out_features", len(head.weight))
        self.tokens_at_once = max(LOGITS_AT_ONCE_BYTES // (words * size), 1)

    @contextmanager
    def among(self, words: Words) -> Iterator[None]:
        """Inside, `logits` are of some words, and `losses` compare with these and a token's own."""
        head = cast(nn.Linear, self._model.get_output_embeddings())
        self._some = some = _Some(head, words)
        head.forward = some.logits  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            self._some = None
            head.__dict__.pop("forward", None)

    def states(self, **inputs: Any) -> Tensor:
        """Run the model on ``inputs`` up to its head; returns states (B, T, H)."""

        def stop(_: nn.Module, args: tuple[Any, ...], output: ModelOutput) -> None:
            raise _Reached(output)

        handle = self._top.register_forward_hook(stop)
        try:
            self._model(**inputs)
        except _Reached as reached:
            self._kind = type(reached.output)
            return cast(Any, reached.output).last_hidden_state
        finally:
            handle.remove()
        raise RuntimeError("the model does not run what should be below its head")

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits (N, V) of N tokens' states (N, H), in the model's own numbers."""
        ids = torch.zeros(1, len(states), dtype=torch.int64, device=states.device)
        inputs: dict[str, Any] = {"input_ids": ids}
        if self._model.config.is_encoder_decoder:
            # Nobody reads it.
            nothing = BaseModelOutput(last_hidden_state=states[None])  # type: ignore[arg-type]
            inputs = {"encoder_outputs": nothing, "decoder_input_ids": ids}
        self._top.forward = lambda *_, **__: self._kind(  # type: ignore[method-assign]
            last_hidden_state=states[None]
        )
        try:
            return cast(Tensor, self._model(**inputs).logits)[0]
        finally:
            self._top.__dict__.pop("forward", None)

    def losses(self, states: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy of N tokens, (N,), float32, in nats.

        Never are the logits of more than `tokens_at_once` tokens in memory, neither here nor in the
        backward pass. Inside `among`, what all words but a token's own add is estimated.

        Parameters
        ----------
        states : Tensor
            (N, H), after the last layer.
        targets : Tensor
            (N,), int64: the token that should follow.
        """
        return cast(Tensor, _InPieces.apply(states, targets, self))

    @contextmanager
    def compared(self, targets: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Inside, `logits` are of what tokens (N,) are compared with.

        Yields
        ------
        places : Tensor
            (N,), int64: which of them each token is.
        weights : Tensor, optional
            (K,), float32: what is added to their logits where they are not the token itself; what
            comes after them counts for its own tokens alone. None where they are all words.
        """
        if self._some is None:
            yield targets, None
            return
        places, self._some.others = self._some.words.places(targets)
        try:
            yield places, self._some.words.weights
        finally:
            self._some.others = None

    def likeliest(self, states: Tensor) -> Tensor:
        """Return the likeliest next tokens (N,), int64, of states (N, H); as `losses` in pieces."""
        pieces = states.split(self.tokens_at_once) if len(states) else ()
        found = [self.logits(piece).argmax(-1) for piece in pieces]
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64)


class _Some:
    """Stands in for a head, and gives the logits of some words alone.

    Attributes
    ----------
    others : Tensor, optional
        (E,), int64: words that come after the drawn ones.
    """

    def __init__(self, head: nn.Linear, words: Words) -> None:
        self.words = words
        self.others: Tensor | None = None
        self._head = head
        self._kept = self._of(words.ids)

    def logits(self, states: Tensor) -> Tensor:
        """Return logits (..., K + E)."""
        drawn = linear(states, *self._kept)
        if self.others is None or not len(self.others):
            return drawn
        return torch.cat([drawn, linear(states, *self._of(self.others))], dim=-1)

    def _of(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        bias = self._head.bias
        return self._head.weight.detach()[ids], None if bias is None else bias.detach()[ids]


class TokenModel(nn.Module, ABC):
    """A model whose own, frozen, head says which token comes next.

    Parameters
    ----------
    backbone : PreTrainedModel
        Transformer with the head.
    """

    one_vector = False

    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__()
        self.backbone = backbone
        self.readout = Readout(backbone, backbone.get_decoder())

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Compute logits of the tokens that count, of all at once.

        Returns
        -------
        logits : Tensor
            (N, V), float32, one row for each of the N tokens that count.
        targets : Tensor
            (N,), int64.
        rows : Tensor
            (N,), int64: the record of the batch that the token belongs to.
        """
        states, targets, rows = self.counted(batch)
        return self.readout.logits(states).float(), targets, rows

    def token_losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Compute the loss of the tokens that count, a piece of them at a time.

        Returns
        -------
        losses : Tensor
            (N,), float32, in nats.
        rows : Tensor
            (N,), int64: the record of the batch that the token belongs to.
        """
        states, targets, rows = self.counted(batch)
        return self.readout.losses(states, targets), rows

    @torch.no_grad()
    def likeliest(self, batch: Batch) -> Tensor:
        """Return the token that is likeliest at each place that counts, (N,), int64."""
        return self.readout.likeliest(self.counted(batch)[0])

    @abstractmethod
    def counted(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return what enters the head where a token counts, (N, H), that token, and its record."""

    def tried(self, states: Tensor) -> Tensor:
        """Return the logits (B, T, V) of states (B, T, H), as pieces of few tokens give them."""
        pieces = states.flatten(0, 1).split(_TRIED_AT_ONCE)
        return torch.cat([self.readout.logits(piece) for piece in pieces]).unflatten(
            0, states.shape[:2]
        )


class _InPieces(torch.autograd.Function):
    """Losses of tokens, each of which hangs on its own state alone."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, targets: Tensor, readout: Readout) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        losses, slopes = [], []
        for part, following in zip(
            states.detach().split(readout.tokens_at_once),
            targets.split(readout.tokens_at_once),
            strict=True,
        ):
            with torch.set_grad_enabled(wanted), readout.compared(following) as (places, weights):
                part.requires_grad_(wanted)
                logits = readout.logits(part)
            slope = torch.empty_like(logits) if wanted else None
            losses.append(row_losses(logits.detach(), places, slope, weights))
            if wanted:
                slopes.extend(torch.autograd.grad(logits, part, slope))
        if wanted:
            ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: FunctionCtx, *given: Tensor) -> tuple[Tensor, None, None]:
        (slopes,) = cast(Any, ctx).saved_tensors
        return (given[0][:, None] * slopes).to(slopes.dtype), None, None


def row_losses(
    logits: Tensor, targets: Tensor, slopes: Tensor | None, weights: Tensor | None = None
) -> Tensor:
    """Return cross-entropies (N,), float32, of logits (N, V), and their gradients in ``slopes``.

    ``weights`` are those of `Readout.compared`. A few rows at a time: passes over the logits of
    all tokens in float32, from memory and back, take as long as the product that makes them.
    """
    losses = []
    for start in range(0, len(logits), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        places = targets[rows, None]
        given = logits[rows].float()
        shares = log_softmax(given if weights is None else _estimated(given, places, weights), -1)
        losses.append(-shares.gather(1, places)[:, 0])
        if slopes is not None:
            shares.exp_()
            shares.scatter_add_(1, places, torch.full_like(places, -1, dtype=shares.dtype))
            slopes[rows] = shares
    # A record need not have a token that counts.
    return torch.cat(losses) if losses else logits.new_zeros(0, dtype=torch.float32)


def _estimated(logits: Tensor, own: Tensor, weights: Tensor) -> Tensor:
    """Return logits (N, K + E) as they count: the first K by their weights, a token's own as it is.

    Other tokens' own words are left out: what they would add is in the weights of the first.
    """
    others = logits.new_full((logits.shape[-1] - len(weights),), -torch.inf)
    return (logits + torch.cat([weights, others])).scatter(1, own, logits.gather(1, own))
