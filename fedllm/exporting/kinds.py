"""What stands on a trained base model, as far as those who take it over must know."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedllm.exporting.head import Head
from fedllm.models.encoder_decoder import PromptedModel
from fedllm.models.shared import SharedModel
from fedllm.models.token_head import TokenClassifier
from fedllm.models.transformer import TextClassifier


@dataclass(frozen=True, eq=False)
class TrainedHead:
    """A linear head of float32 that a run trained.

    Attributes
    ----------
    tensors : dict of str to Tensor
        "weight" (C, H), "bias" (C,), and "center" (H,) where one is taken off features.
    pooling : {"mean", "cls", "last", "none"}
        How states of a text become one vector; "none" where each token has a label.
    scale : float
        Length that vectors get; 0 leaves them as they are.
    """

    tensors: dict[str, Tensor]
    pooling: str
    scale: float

    @property
    def of_tokens(self) -> bool:
        """Whether it labels tokens, and not texts."""
        return self.pooling == "none"

    @property
    def module(self) -> Head:
        """The same without fedllm."""
        return Head(self.tensors, self.pooling, self.scale)


@dataclass(frozen=True, eq=False)
class Kind:
    """What kind of model a run gave.

    Attributes
    ----------
    auto : str
        transformers' class that loads its base.
    head : TrainedHead, optional
        None where the base's own head says which token is next.
    prompted : bool
        Whether an encoder reads the prompt and a decoder writes the answer.
    """

    auto: str
    head: TrainedHead | None = None
    prompted: bool = False


def kind_of(model: SharedModel) -> Kind:
    """Return what kind of model this is."""
    match model.module:
        case TextClassifier() as module:
            tensors = _values(module)
            if module.center is not None:
                tensors["center"] = module.center.detach().cpu()
            return Kind("AutoModel", TrainedHead(tensors, module.pooling, module.feature_scale))
        case TokenClassifier() as module:
            return Kind("AutoModel", TrainedHead(_values(module), "none", module.feature_scale))
        case PromptedModel():
            return Kind("AutoModelForSeq2SeqLM", prompted=True)
        case _:
            return Kind("AutoModelForCausalLM")


def _values(module: TextClassifier | TokenClassifier) -> dict[str, Tensor]:
    return {name: values.detach().cpu() for name, values in module.head.state_dict().items()}
