"""Whether a head of transformers' own computes what a run's head does."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedllm.exporting.kinds import TrainedHead, kind_of
from fedllm.exporting.released import Released

_NAMES = ("classifier", "score")
# Of random logits: what one more layer or another pooling makes of them is far from this.
MOST = 1e-4
_FOLDED = (
    "transformers' head of this class has no bias. The run's is in its weights: the base's last "
    "layer norm leaves a direction in which all last states are alike, and the bias is added "
    "there. In types of fewer bits than float32 it is rounded more than other weights."
)


@dataclass(frozen=True, eq=False)
class StandardHead:
    """A head as transformers has it.

    Attributes
    ----------
    auto : str
        The class that has it.
    task_type : str
        What peft calls such a model.
    modules : tuple of str
        What is of the run in the whole model, beside base and adapter.
    prefix : str
        Of the base within it.
    tensors : dict of str to Tensor
        The values of ``modules``, by their names in the whole model.
    of_tokens : bool
        Whether it labels tokens.
    outputs : int
        Labels or tags.
    note : str
        What whoever uses it should know; may be empty.
    """

    auto: str
    task_type: str
    modules: tuple[str, ...]
    prefix: str
    tensors: dict[str, Tensor]
    of_tokens: bool
    outputs: int
    note: str = ""

    def inside(self, name: str) -> str:
        """Return the name that a part of the base has in the whole model."""
        return f"{self.prefix}.{name}"


def standard_head(released: Released) -> StandardHead | None:
    """Return transformers' head that does the same for every text; None where there is none.

    Looked for where vectors keep their length: no head of transformers gives them another one.
    What transformers' class has beside base and head, such as a pooler or a second layer, rules
    it out; else it is tried with random weights. Where the class's head has no bias, the run's is
    folded into the weights if the base's last states have a direction in which all are alike.
    """
    head = kind_of(released.model).head
    if head is None or head.scale or head.pooling not in ("none", "last"):
        return None
    auto, task_type = (
        ("AutoModelForTokenClassification", "TOKEN_CLS")
        if head.of_tokens
        else ("AutoModelForSequenceClassification", "SEQ_CLS")
    )
    outputs = len(head.tensors["bias"])
    model = without_weights(released, auto, outputs)
    if model is None:
        return None
    prefix = model.base_model_prefix
    own = {n for n, _ in model.named_parameters() if not n.startswith(f"{prefix}.")}
    name = next((name for name in _NAMES if f"{name}.weight" in own), None)
    if name is None or own - {f"{name}.weight", f"{name}.bias"}:
        return None
    folding = None
    if f"{name}.bias" not in own and bool(head.tensors["bias"].any()):
        folding = _direction_of_one(released)
        if folding is None:
            return None
    biased = f"{name}.bias" in own
    for tried in (random_head(head), head):
        values = _held(tried, biased, folding)
        if not _does_the_same(released, model, prefix, name, values, tried):
            return None
    tensors = {f"{name}.{part}": held for part, held in values.items()}
    note = "" if folding is None else _FOLDED
    return StandardHead(auto, task_type, (name,), prefix, tensors, head.of_tokens, outputs, note)


def random_head(head: TrainedHead) -> TrainedHead:
    """Return a head of the same kind and size with random values."""
    outputs, width = head.tensors["weight"].shape
    linear = nn.Linear(width, outputs)
    tensors = {name: values.detach() for name, values in linear.named_parameters()}
    return TrainedHead(tensors, head.pooling, head.scale)


def _held(head: TrainedHead, biased: bool, folding: Tensor | None) -> dict[str, Tensor]:
    """Return a head's values as transformers' class holds them."""
    weight, bias = head.tensors["weight"], head.tensors["bias"]
    if biased:
        return {"weight": weight, "bias": bias}
    if folding is None:
        return {"weight": weight}
    return {"weight": (weight.double() + bias.double()[:, None] * folding).float()}


@torch.no_grad()
def _direction_of_one(released: Released) -> Tensor | None:
    """Return u (H,), float64, with u h = 1 for all last states h, if there is one.

    What layer norm scales by g and moves by b sums up to zero before: the sum of (h - b) / g is
    zero, whatever h is. Which norm is the last thing that happens to states, a trial tells.
    """
    from fedllm.exporting.probe import make_probe

    backbone: Any = released.model.module.backbone
    states = backbone(**make_probe(released, seed=1).inputs).last_hidden_state.double()
    for norm in backbone.modules():
        if not isinstance(norm, nn.LayerNorm) or norm.weight is None or norm.bias is None:
            continue
        scale, moved = norm.weight.double(), norm.bias.double()
        found = 1 / (scale * (moved / scale).sum())
        if found.shape == states.shape[-1:] and bool(((states @ found - 1).abs() < MOST).all()):
            return found
    return None


def without_weights(released: Released, auto: str, outputs: int) -> Any | None:
    """Return transformers' class on a run's base, without memory for weights, if there is one."""
    import transformers

    config = deepcopy(released.model.module.backbone.config)
    config.num_labels = outputs
    of_class = getattr(transformers, auto)
    if type(config) not in of_class._model_mapping:
        return None
    with torch.device("meta"):
        return of_class.from_config(config)


def with_standard_head(
    standard: StandardHead, base: nn.Module, config: Any, dtype: torch.dtype
) -> Any:
    """Return a model of transformers' class with a base, and the run's head."""
    import transformers

    with torch.device("meta"):
        model = getattr(transformers, standard.auto).from_config(config)
    setattr(model, standard.prefix, base)
    put_linears(model, standard.tensors, dtype)
    return model


@torch.no_grad()
def put_linears(model: Any, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Put linear layers of these weights, and perhaps biases, into a model, by their names."""
    for name in sorted({name.rpartition(".")[0] for name in tensors}):
        weight, bias = tensors[f"{name}.weight"], tensors.get(f"{name}.bias")
        outputs, width = weight.shape
        linear = nn.Linear(width, outputs, bias=bias is not None, dtype=dtype)
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(bias)
        above, _, last = name.rpartition(".")
        setattr(model.get_submodule(above), last, linear)


@torch.no_grad()
def _does_the_same(
    released: Released,
    model: Any,
    prefix: str,
    name: str,
    values: Mapping[str, Tensor],
    head: TrainedHead,
) -> bool:
    from fedllm.exporting.probe import head_answers, make_probe

    backbone = released.model.module.backbone
    if not hasattr(model, prefix):
        return False
    setattr(model, prefix, backbone)
    put_linears(model, {f"{name}.{part}": held for part, held in values.items()}, torch.float32)
    if not head.of_tokens and model.config.pad_token_id is None:
        # It then cannot tell where a text ends.
        return False
    model.eval()
    probe = make_probe(released, seed=1)
    logits = cast(Tensor, model(**probe.inputs).logits).float()
    found, wanted = logits, head_answers(backbone, head, probe)
    if head.of_tokens:
        found = logits[probe.mask.bool()]
    return alike(found, wanted)


def alike(found: Tensor, wanted: Tensor) -> bool:
    """Tell whether logits differ by rounding alone."""
    return bool((found - wanted).abs().max() < MOST * wanted.abs().max().clamp(min=1))
