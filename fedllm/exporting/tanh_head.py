"""A head on the first token's state, where transformers' class has a layer and tanh before it.

BERT's and RoBERTa's classes do not label the first token's state itself, but what a square layer
and tanh make of it. Next to zero tanh is a straight line: a layer that makes states a thousand
times smaller, and a head that is as much larger, leave all as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from fedllm.exporting.kinds import TrainedHead, kind_of
from fedllm.exporting.released import Released
from fedllm.exporting.standard_head import (
    StandardHead,
    alike,
    put_linears,
    random_head,
    without_weights,
)

# A power of two, which costs no digits. tanh takes x^3 / 3 off x: of a state of 5 some 1e-5 of it.
_SLOPE = 2.0**-10
_NOTE = (
    "transformers' class has a layer and tanh between the first token's state and the head. The "
    f"layer is written as 1/{round(1 / _SLOPE)} of the identity and the head as that many times "
    "the run's, so that tanh takes some 1e-5 off a state of 5."
)


@dataclass(frozen=True)
class _Layout:
    """Where a class has its layer before tanh and its head, and what is saved whole."""

    dense: str
    out: str
    modules: tuple[str, ...]


def tanh_head(released: Released) -> StandardHead | None:
    """Return transformers' head that does nearly the same for every text; None if there is none.

    It is looked for where the first token's state keeps its length, and tried, with random values
    and with the run's.
    """
    head = kind_of(released.model).head
    if head is None or head.of_tokens or head.scale or head.pooling != "cls":
        return None
    auto, outputs = "AutoModelForSequenceClassification", len(head.tensors["bias"])
    model = without_weights(released, auto, outputs)
    layout = None if model is None else _layout(model)
    if model is None or layout is None:
        return None
    for tried in (random_head(head), head):
        tensors = _tensors(layout, tried)
        if not _does_the_same(released, model, tensors, tried):
            return None
    prefix = model.base_model_prefix
    return StandardHead(auto, "SEQ_CLS", layout.modules, prefix, tensors, False, outputs, _NOTE)


def _layout(model: Any) -> _Layout | None:
    prefix = model.base_model_prefix
    names = {name for name, _ in model.named_parameters()}
    own = {name for name in names if not name.startswith(f"{prefix}.")}
    dense = f"{prefix}.pooler.dense"
    if own == _parts("classifier") and _parts(dense) <= names:
        return _Layout(dense, "classifier", (f"{prefix}.pooler", "classifier"))
    dense, out = "classifier.dense", "classifier.out_proj"
    if own == _parts(dense) | _parts(out):
        return _Layout(dense, out, ("classifier",))
    return None


def _parts(name: str) -> set[str]:
    return {f"{name}.weight", f"{name}.bias"}


def _tensors(layout: _Layout, head: TrainedHead) -> dict[str, Tensor]:
    weight, bias = head.tensors["weight"], head.tensors["bias"]
    width = weight.shape[1]
    return {
        f"{layout.dense}.weight": _SLOPE * torch.eye(width),
        f"{layout.dense}.bias": torch.zeros(width),
        f"{layout.out}.weight": weight / _SLOPE,
        f"{layout.out}.bias": bias,
    }


@torch.no_grad()
def _does_the_same(
    released: Released, model: Any, tensors: dict[str, Tensor], head: TrainedHead
) -> bool:
    from fedllm.exporting.probe import head_answers, make_probe

    backbone: Any = released.model.module.backbone
    probe = make_probe(released, seed=1)
    wanted = head_answers(backbone, head, probe)
    with _on_the_base(model, backbone):
        put_linears(model, tensors, torch.float32)
        logits = cast(Tensor, model.eval()(**probe.inputs).logits).float()
    return alike(logits, wanted)


@contextmanager
def _on_the_base(model: Any, backbone: Any) -> Iterator[None]:
    """Let a model stand on a run's base, which gets the class's pooler for so long."""
    prefix = model.base_model_prefix
    before, own = getattr(model, prefix), getattr(backbone, "pooler", None)
    pooler = getattr(before, "pooler", None)
    setattr(model, prefix, backbone)
    if pooler is not None:
        backbone.pooler = pooler
    try:
        yield
    finally:
        if pooler is not None:
            backbone.pooler = own
        setattr(model, prefix, before)
