"""The model that all parties share: a frozen Transformer, its adapter, its head."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never, cast

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as format_safetensors
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedllm.config import RunConfig, Task
from fedllm.config.task import trains_a_head
from fedllm.errors import CheckpointError, TrainingError
from fedllm.files import atomic_directory, write_bytes, write_json
from fedllm.models import checkpoints
from fedllm.models.architecture import Architecture
from fedllm.models.behaviour import check_parts, observe
from fedllm.models.contents import read_object
from fedllm.models.encoder_decoder import PromptedModel, TwoStacks
from fedllm.models.encoder_decoder_trial import check_pair, observe_pair
from fedllm.models.fit import check_head, check_length, check_padding
from fedllm.models.heads import Head, LabelHead, LanguageHead
from fedllm.models.lora import add_adapters, first_trained_layer
from fedllm.models.manifest import AdapterManifest, Group
from fedllm.models.prefix import PrefixCache
from fedllm.models.transformer import LanguageModel, LayerStack, Pooling, TextClassifier

_ABOUT, _LORA, _LORA_CONFIG, _HEAD = (
    "shared_model.json",
    "adapter_model.safetensors",
    "adapter_config.json",
    "head.safetensors",
)


_LORA_SETTINGS = ("r", "lora_alpha", "use_rslora", "use_dora")
_LOG = logging.getLogger(__name__)


@dataclass(eq=False)
class SharedModel:
    """A frozen base model with trainable adapters, and perhaps a head that is trained too.

    Attributes
    ----------
    module : TextClassifier, LanguageModel or PromptedModel
        Maps a batch to logits.
    tokenizer : PreTrainedTokenizerBase
        Of the base model.
    task : str
        What the module is trained for.
    labels : tuple of str
        Names of the classes, in the head's order; empty without a head of labels.
    fingerprint : str
        SHA-256 of the base model's files.
    earlier_fingerprint : str
        The same as fedllm made it before; adapters of that time name it.
    manifest : AdapterManifest
        Order of the trained tensors in the flat vector.
    initial : ndarray
        (P,) float32, the untrained adapter from which every run starts.
    prefix : PrefixCache
        Outputs of the frozen part, kept by data set.
    """

    module: TextClassifier | LanguageModel | PromptedModel
    tokenizer: PreTrainedTokenizerBase
    task: Task
    labels: tuple[str, ...]
    fingerprint: str
    peft: PeftModel | None
    earlier_fingerprint: str = ""

    def __post_init__(self) -> None:
        self._parameters = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        self.manifest = AdapterManifest.of(
            (name, tuple(p.shape), _group(name)) for name, p in self._parameters.items()
        )
        self.initial = self.adapter()
        self.prefix = PrefixCache(
            self.module, self.module.stack.has_frozen_part, pooled=self.peft is None
        )

    @property
    def trained(self) -> list[nn.Parameter]:
        """The trained tensors in manifest order."""
        return [self._parameters[segment.name] for segment in self.manifest.segments]

    @property
    def row_layers(self) -> list[nn.Linear]:
        """The trained layers that see one vector a record."""
        return [self.module.head] if isinstance(self.module, TextClassifier) else []

    @property
    def number_of_parameters(self) -> int:
        """Parameters of the whole model, frozen ones included."""
        return sum(p.numel() for p in self.module.parameters())

    @property
    def shape(self) -> dict[str, str | int]:
        """Kind of the base model, number of its layers and width of its states."""
        stack = self.module.stack
        return {
            "architecture": str(stack.stack.config.model_type),
            "layers": len(stack.layers),
            "hidden_size": stack.width,
        }

    def adapter(self) -> NDArray[np.float32]:
        """Return a copy of all trained values (P,), float32, in manifest order."""
        parts = [p.detach().cpu().reshape(-1) for p in self.trained]
        return torch.cat(parts).numpy().copy()

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Put the trained values back at the end that the model holds now."""
        before = self.adapter()
        try:
            yield
        finally:
            self.set_adapter(before)

    def set_adapter(self, vector: NDArray[np.floating[Any]]) -> None:
        """Put ``vector`` (P,) into the trained tensors.

        Raises
        ------
        TrainingError
            If it has another length, or holds NaN or infinity.
        """
        if vector.shape != (self.manifest.length,):
            raise TrainingError(
                f"an adapter of shape {vector.shape} was given; this model's is "
                f"({self.manifest.length},)",
                "use the same model, lora and labels for all parties",
            )
        values = np.asarray(vector, dtype=np.float32)
        if not np.isfinite(values).all():
            raise TrainingError("the adapter holds NaN or infinity", "lower the learning rate")
        with torch.no_grad():
            for segment, parameter in zip(self.manifest.segments, self.trained, strict=True):
                part = torch.from_numpy(values[segment.slice].copy())
                parameter.copy_(part.reshape(segment.shape))

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter so that peft can load it onto the base model, and the head beside it.

        Raises
        ------
        FedllmError
            If the disk is full; the earlier folder is untouched.
        """
        about = self._about()
        with atomic_directory(folder) as new:
            for name, tensors in self._tensors().items():
                write_bytes(new / name, format_safetensors(tensors, {"format": "pt"}))
            if self.peft is not None:
                write_json(new / _LORA_CONFIG, _plain(self.peft.peft_config["default"].to_dict()))
            write_json(new / _ABOUT, about)

    def load_adapter(self, folder: Path) -> None:
        """Read what `save_adapter` wrote.

        Raises
        ------
        CheckpointError
            If a file is missing or damaged, or belongs to another model, task or label set.
        """
        about, wanted = read_object(folder / _ABOUT), self._about()
        if self.earlier_fingerprint and about.get("base_fingerprint") == self.earlier_fingerprint:
            about["base_fingerprint"] = self.fingerprint
            _LOG.warning(
                "%s names its base model by an earlier kind of fingerprint, which did not cover "
                "all files: it fits this model as far as that tells",
                folder,
            )
        if self.peft is not None:
            # One trained at another scale is another function of the same numbers.
            saved = read_object(folder / _LORA_CONFIG)
            settings = self.peft.peft_config["default"].to_dict()
            about |= {key: saved.get(key) for key in _LORA_SETTINGS}
            wanted |= {key: settings.get(key) for key in _LORA_SETTINGS}
        for key, value in wanted.items():
            if about.get(key) != value:
                raise CheckpointError(
                    f"the adapter in {folder} was made for another model: {key} differs",
                    "load it with the run.toml that made it",
                )
        expected = self._tensors()
        read = {name: _read_tensors(folder / name, expected[name]) for name in expected}
        if self.peft is not None:
            set_peft_model_state_dict(self.peft, read[_LORA])
        if isinstance(self.module, TextClassifier):
            self.module.head.load_state_dict(read[_HEAD])

    def _about(self) -> dict[str, Any]:
        about: dict[str, Any] = {
            "task": self.task,
            "base_fingerprint": self.fingerprint,
            "manifest": self.manifest.fingerprint,
            "labels": list(self.labels),
        }
        if isinstance(self.module, TextClassifier):
            about["pooling"] = self.module.pooling
            about["feature_scale"] = self.module.feature_scale
            about["feature_center"] = "zero" if self.module.center is None else "label_names"
        return about

    def _tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        files: dict[str, dict[str, torch.Tensor]] = {}
        if self.peft is not None:
            files[_LORA] = get_peft_model_state_dict(self.peft)
        if isinstance(self.module, TextClassifier):
            files[_HEAD] = self.module.head.state_dict()
        return {
            name: {key: tensors[key].detach().cpu().contiguous() for key in sorted(tensors)}
            for name, tensors in files.items()
        }


def load_shared_model(config: RunConfig, head: Head | tuple[str, ...] = ()) -> SharedModel:
    """Load the base model of a run and give it the run's untrained adapter.

    Parameters
    ----------
    config : RunConfig
        ``model``, ``lora``, ``task`` and ``seed`` are used; the adapter's first values depend
        on these and the head alone, so that every party starts from the same.
    head : Head or tuple of str
        What the task puts on top; a script may give the labels alone.

    Raises
    ------
    ConfigError
        If the head does not fit the model, or labels are missing.
    CheckpointError
        If the checkpoint is missing, damaged or not supported.
    """
    if isinstance(head, tuple):
        head = LabelHead(head) if trains_a_head(config.task) else LanguageHead()
    folder = checkpoints.checkpoint_folder(config.model.path)
    before, prints = checkpoints.state(folder), checkpoints.fingerprints(folder)
    base, architecture = checkpoints.read_config(folder)
    labels = head.labels if isinstance(head, LabelHead) else ()
    own_head = isinstance(head, LanguageHead)
    check_head(config, head, str(base.model_type), architecture)
    check_length(architecture, config.model.max_length)
    dtype = torch.bfloat16 if config.model.precision == "bfloat16" else torch.float32
    backbone = checkpoints.load_weights(folder, base, architecture, dtype, language_model=own_head)
    base_model = cast(PreTrainedModel, backbone.base_model)
    first = first_trained_layer(config.lora, len(architecture.layer_names(base_model)))
    stack: LayerStack | TwoStacks
    if architecture.prompted:
        width = observe_pair(folder, backbone, architecture)
        stack = TwoStacks(base_model, architecture, first, width)
    else:
        behaviour = observe(folder, backbone, architecture)
        stack = LayerStack(base_model, architecture.layers, first, behaviour)
    adapted = (
        add_adapters(backbone, architecture, config.lora, config.seed) if config.lora.rank else None
    )
    tokenizer = checkpoints.load_tokenizer(folder, base.vocab_size)
    check_padding(folder, architecture, tokenizer.pad_token_id)
    module: TextClassifier | LanguageModel | PromptedModel
    if isinstance(stack, TwoStacks):
        module = PromptedModel(backbone, stack)
        check_pair(folder, module, architecture)
    else:
        module = _on_top(config, head, backbone, stack, architecture, tokenizer)
        check_parts(folder, module, architecture)
    if checkpoints.state(folder) != before:
        raise CheckpointError(f"{folder} changed while it was read", "try again when it is whole")
    return SharedModel(
        module=module.train(),
        tokenizer=tokenizer,
        task=config.task,
        labels=labels,
        fingerprint=prints.current,
        earlier_fingerprint=prints.earlier,
        peft=adapted,
    )


def _on_top(
    config: RunConfig,
    head: Head,
    backbone: PreTrainedModel,
    stack: LayerStack,
    architecture: Architecture,
    tokenizer: PreTrainedTokenizerBase,
) -> TextClassifier | LanguageModel:
    match head:
        case LabelHead(labels):
            pooling: Pooling = "last" if architecture.causal else config.model.pooling
            scale = config.model.feature_scale
            module = TextClassifier(backbone, stack, len(labels), pooling, scale)
            if config.model.feature_center == "label_names":
                features = _name_features(module, tokenizer, labels)
                module.center = nn.functional.normalize(features, dim=-1).mean(0)
            if config.model.head_start == "label_names":
                _start_at_label_names(module, tokenizer, labels)
            return module
        case LanguageHead():
            return LanguageModel(backbone, stack)
        case _:
            assert_never(head)


@torch.no_grad()
def _name_features(
    module: TextClassifier, tokenizer: PreTrainedTokenizerBase, labels: tuple[str, ...]
) -> torch.Tensor:
    """Return the features (C, H) of the labels' own names, which are public."""
    names = [label.replace("_", " ").replace("-", " ") for label in labels]
    encoded = tokenizer(names, padding=True, truncation=True, max_length=64, return_tensors="pt")
    return module.features(
        {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}
    )


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


def _group(name: str) -> Group:
    return "lora" if ".lora_" in name else "head"


def _plain(value: Any) -> Any:
    # peft keeps target modules in a set, whose order differs from process to process.
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in sorted(value.items())}
    if isinstance(value, set | frozenset):
        return sorted(value)
    return value


def _read_tensors(path: Path, expected: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    try:
        tensors = parse_safetensors(path.read_bytes())
    except Exception as error:
        raise CheckpointError(
            f"{path} is missing or damaged: {error}", "use an earlier checkpoint"
        ) from None
    same = tensors.keys() == expected.keys() and all(
        tensors[key].shape == expected[key].shape and tensors[key].dtype == torch.float32
        for key in expected
    )
    if not same:
        raise CheckpointError(f"{path} holds other tensors than this model's adapter")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise CheckpointError(f"{path} holds NaN or infinity", "use an earlier checkpoint")
    return tensors
