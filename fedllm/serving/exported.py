"""Load what `fedllm export` or `fedllm compress` wrote: a whole model, and the head of its run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedllm.compression.integers import quicken
from fedllm.compression.integers_folder import is_of_integers, load_integers
from fedllm.config import Task
from fedllm.config.task import pools_text, trains_a_head
from fedllm.errors import CheckpointError, ConfigError
from fedllm.exporting.merged import HEAD_ABOUT
from fedllm.exporting.peft_format import LABELS, written_head
from fedllm.models import checkpoints
from fedllm.models.contents import EXPORTED, read_object
from fedllm.models.device import chosen_device, put_on
from fedllm.models.saved import HEAD
from fedllm.models.shared import SharedModel
from fedllm.models.token_head import TokenClassifier
from fedllm.models.transformer import Behaviour, LayerStack, TextClassifier
from fedllm.tasks import task_of

_STANDARD = ("classifier", "score")
_REMEDY = "copy the folder again, or repeat the command that made it"


@dataclass(frozen=True, eq=False)
class Exported:
    """A whole model.

    Attributes
    ----------
    task : str
        What the run learned.
    network : PreTrainedModel
        The Transformer, with its own head where the run has none.
    model : SharedModel, optional
        With the head that the run trained; None where the base's own head writes.
    max_length : int
        Tokens of a record in the run.
    column : str
        Where the run's files have texts or prompts.
    layers : str
        Dotted name of the list of blocks in the Transformer without a head.
    """

    task: Task
    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    model: SharedModel | None
    max_length: int
    column: str
    layers: str


def is_exported(folder: Path) -> bool:
    """Tell whether a folder holds a whole model of a run."""
    return (folder / EXPORTED).exists() and (folder / "config.json").exists()


def labels_in(path: Path) -> tuple[str, ...]:
    """Return the labels that a file beside a head has, in the head's order.

    Raises
    ------
    CheckpointError
        If it is missing or damaged, or has none.
    """
    labels = read_object(path).get("labels")
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise CheckpointError(f"{path} has no list of labels", _REMEDY)
    return tuple(labels)


def load_exported(folder: Path, device: str | None = None) -> Exported:
    """Load a whole model of a run.

    Parameters
    ----------
    device : str, optional
        Where it computes; see `chosen_device`. Integers are for the processor.

    Raises
    ------
    ConfigError
        If this machine lacks the device, or the model is not for it.
    CheckpointError
        If a file is missing or damaged, or labels do not fit the head.
    """
    about = read_object(folder / EXPORTED)
    length, column = about.get("max_length"), about.get("column")
    task: Task | None = next((name for name in get_args(Task) if name == about.get("task")), None)
    if task is None or type(length) is not int or not isinstance(column, str):
        raise CheckpointError(f"{folder / EXPORTED} does not say what the model is for", _REMEDY)
    place = chosen_device(device, "--device")
    if is_of_integers(folder):
        if place.type != "cpu":
            raise ConfigError(
                f"the model in {folder} computes with integers, on the processor alone",
                "leave --device out, or export it with --format merged",
            )
        network, layers = load_integers(folder)
        quicken(network)
    else:
        config, architecture = checkpoints.read_config(folder)
        layers = architecture.layers
        network = checkpoints.load_weights(
            folder,
            config,
            architecture,
            torch.float32 if place.type == "cpu" else torch.bfloat16,
            language_model=not trains_a_head(task),
        )
        put_on(network, place)
    tokenizer = checkpoints.load_tokenizer(folder, int(network.config.vocab_size))
    network.eval()
    model = _with_head(folder, task, network, layers, tokenizer) if trains_a_head(task) else None
    return Exported(task, network, tokenizer, model, length, column, layers)


def _with_head(
    folder: Path,
    task: Task,
    network: PreTrainedModel,
    layers: str,
    tokenizer: PreTrainedTokenizerBase,
) -> SharedModel:
    labels, tensors, pooling, scale = _head(folder, task)
    count = len(network.base_model.get_submodule(layers))  # type: ignore[arg-type]
    stack = LayerStack(network, layers, 0, Behaviour(int(network.config.hidden_size), 0))
    wanted: Any = task_of(task).head(labels)
    outputs = getattr(wanted, "outputs", len(labels))
    if count == 0 or tensors["weight"].shape != (outputs, stack.width):
        raise CheckpointError(
            f"the labels in {folder} do not fit its head: {len(labels)} labels need {outputs} "
            f"outputs of {stack.width} values, and it has {tuple(tensors['weight'].shape)}",
            _REMEDY,
        )
    module: TextClassifier | TokenClassifier
    if pools_text(task):
        module = TextClassifier(network, stack, outputs, pooling, scale)  # type: ignore[arg-type]
        if "center" in tensors:
            # Where the head is.
            module.center = module.head.weight.detach()[0].clone().copy_(tensors["center"])
    else:
        module = TokenClassifier(network, stack, outputs, scale)
    bias = tensors.get("bias", torch.zeros(outputs))
    module.head.load_state_dict({"weight": tensors["weight"], "bias": bias})
    return SharedModel(
        module=module.eval(),
        tokenizer=tokenizer,
        task=task,
        labels=labels,
        fingerprint="",
        peft=None,
        tagging=str(getattr(wanted, "tagging", "")),
    )


def _head(folder: Path, task: Task) -> tuple[tuple[str, ...], Mapping[str, Tensor], str, float]:
    """Return labels, the head's values, how texts are pooled, and features' length."""
    about = HEAD_ABOUT if (folder / HEAD).exists() else LABELS
    labels = labels_in(folder / about)
    if about == HEAD_ABOUT:
        head = written_head(folder, HEAD_ABOUT)
        return labels, head.tensors, head.pooling, head.scale
    # The head of transformers' own class, which looks at the last state where it pools at all.
    return labels, _standard_head(folder), "last", 0.0


def _standard_head(folder: Path) -> dict[str, Tensor]:
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(str(path), "pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                part, _, values = name.rpartition(".")
                if part in _STANDARD:
                    found[values] = file.get_tensor(name).float()
    if "weight" not in found:
        raise CheckpointError(f"{folder} holds no head", _REMEDY)
    return found
