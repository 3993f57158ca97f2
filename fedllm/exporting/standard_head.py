"""Whether a head of transformers' own computes what a run's head does."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedllm.exporting.kinds import TrainedHead, kind_of
from fedllm.exporting.released import Released

_NAMES = ("classifier", "score")
# Of random logits: what one more layer or another pooling makes of them is far from this.
_MOST = 1e-4


@dataclass(frozen=True, eq=False)
class StandardHead:
    """A head as transformers has it.

    Attributes
    ----------
    auto : str
        The class that has it.
    task_type : str
        What peft calls such a model.
    name : str
        Of the head within it.
    prefix : str
        Of the base within it.
    tensors : dict of str to Tensor
        The head's values.
    of_tokens : bool
        Whether it labels tokens.
    outputs : int
        Labels or tags.
    """

    auto: str
    task_type: str
    name: str
    prefix: str
    tensors: dict[str, Tensor]
    of_tokens: bool
    outputs: int

    def inside(self, name: str) -> str:
        """Return the name that a part of the base has in the whole model."""
        return f"{self.prefix}.{name}"


def standard_head(released: Released) -> StandardHead | None:
    """Return transformers' head that does the same for every text; None where there is none.

    Looked for where vectors keep their length: no head of transformers gives them another one.
    What transformers' class has beside base and head, such as a pooler or a second layer, rules
    it out; else it is tried with random weights.
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
    model = _without_weights(released, auto, outputs)
    if model is None:
        return None
    prefix = model.base_model_prefix
    own = {n for n, _ in model.named_parameters() if not n.startswith(f"{prefix}.")}
    name = next((name for name in _NAMES if f"{name}.weight" in own), None)
    if name is None or own - {f"{name}.weight", f"{name}.bias"}:
        return None
    biased = f"{name}.bias" in own
    if not biased and bool(head.tensors["bias"].any()):
        return None
    if not _does_the_same(released, model, prefix, name, biased, head):
        return None
    tensors = {"weight": head.tensors["weight"]} | (
        {"bias": head.tensors["bias"]} if biased else {}
    )
    return StandardHead(auto, task_type, name, prefix, tensors, head.of_tokens, outputs)


def _without_weights(released: Released, auto: str, outputs: int) -> Any | None:
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
    outputs, width = standard.tensors["weight"].shape
    linear = nn.Linear(width, outputs, bias="bias" in standard.tensors, dtype=dtype)
    with torch.no_grad():
        for name, values in standard.tensors.items():
            getattr(linear, name).copy_(values)
    setattr(model, standard.prefix, base)
    setattr(model, standard.name, linear)
    return model


@torch.no_grad()
def _does_the_same(
    released: Released, model: Any, prefix: str, name: str, biased: bool, head: TrainedHead
) -> bool:
    from fedllm.exporting.probe import head_answers, make_probe

    backbone = released.model.module.backbone
    outputs, width = head.tensors["weight"].shape
    linear = nn.Linear(width, outputs, bias=biased)
    if not hasattr(model, prefix):
        return False
    setattr(model, prefix, backbone)
    setattr(model, name, linear)
    if not head.of_tokens and model.config.pad_token_id is None:
        # It then cannot tell where a text ends.
        return False
    model.eval()
    probe = make_probe(released, seed=1)
    bias = linear.bias.detach() if biased else torch.zeros(outputs)
    tried = TrainedHead({"weight": linear.weight.detach(), "bias": bias}, head.pooling, head.scale)
    logits = cast(Tensor, model(**probe.inputs).logits).float()
    found = logits[probe.mask.bool()] if head.of_tokens else logits
    return bool((found - head_answers(backbone, tried, probe)).abs().max() < _MOST)
