"""A task's head on a base model, and where its weights begin."""

from __future__ import annotations

from typing import assert_never

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedllm.config import RunConfig
from fedllm.models.architecture import Architecture
from fedllm.models.device import Place
from fedllm.models.heads import Head, LabelHead, LanguageHead, RewardHead, TokenHead
from fedllm.models.language_model import LanguageModel
from fedllm.models.token_head import TokenClassifier
from fedllm.models.transformer import LayerStack, Pooling, TextClassifier


def put_on_top(
    config: RunConfig,
    head: Head,
    backbone: PreTrainedModel,
    stack: LayerStack,
    architecture: Architecture,
    tokenizer: PreTrainedTokenizerBase,
) -> TextClassifier | TokenClassifier | LanguageModel:
    """Put a task's head on a Transformer of one stack."""
    match head:
        case LabelHead(labels):
            pooling = _pooling(config, architecture)
            scale = config.model.feature_scale
            module = TextClassifier(backbone, stack, len(labels), pooling, scale)
            if config.model.feature_center == "label_names":
                features = _name_features(module, tokenizer, labels)
                module.center = nn.functional.normalize(features, dim=-1).mean(0)
            if config.model.head_start == "label_names":
                _start_at_label_names(module, tokenizer, labels)
            return module
        case RewardHead():
            pooling = _pooling(config, architecture)
            scale = config.model.feature_scale
            module = TextClassifier(backbone, stack, head.outputs, pooling, scale)
            # It takes no part in differences, and has no gradient.
            module.head.bias.requires_grad_(False)
            return module
        case TokenHead():
            scale = config.model.feature_scale
            return TokenClassifier(backbone, stack, head.outputs, scale)
        case LanguageHead():
            return LanguageModel(backbone, stack)
        case _:
            assert_never(head)


def _pooling(config: RunConfig, architecture: Architecture) -> Pooling:
    """Return how states become one vector: a decoder's last token alone has seen the whole text."""
    return "last" if architecture.causal else config.model.pooling


@torch.no_grad()
def _name_features(
    module: TextClassifier, tokenizer: PreTrainedTokenizerBase, labels: tuple[str, ...]
) -> torch.Tensor:
    """Return the features (C, H) of the labels' own names, which are public."""
    names = [label.replace("_", " ").replace("-", " ") for label in labels]
    encoded = tokenizer(names, padding=True, truncation=True, max_length=64, return_tensors="pt")
    batch = {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}
    return module.features(Place.of(module).moved(batch))


@torch.no_grad()
def _start_at_label_names(
    module: TextClassifier, tokenizer: PreTrainedTokenizerBase, labels: tuple[str, ...]
) -> None:
    """Let each class's weights be the features of its name, at length 1.

    The untrained classifier then answers with the label whose name is most similar (Chang et
    al. 2008, "Importance of semantic representation: dataless classification"), and less is
    left to learn from few or noised gradients.
    """
    features = _name_features(module, tokenizer, labels)
    module.head.weight.copy_(nn.functional.normalize(features, dim=-1))
