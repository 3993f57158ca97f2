"""How much memory a site needs to train in a run, estimated by running a step without numbers.

The very code of a step runs, on PyTorch's fake tensors: shapes and types, and no numbers. So a
model that this machine could not hold is estimated in a minute, and nothing is fitted to
measurements. `benchmarks/memory.py` holds the estimate against what is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

# Before tensors are without numbers: where they are first needed, their own would be so too.
import opacus.grad_sample  # noqa: F401
import peft  # noqa: F401
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from fedllm.config import RunConfig
from fedllm.errors import ConfigError
from fedllm.models.architecture import Architecture, attention, options
from fedllm.models.behaviour import WatchedLayers
from fedllm.models.checkpoints import quietly, read_config
from fedllm.models.heads import Head, LabelHead, LanguageHead
from fedllm.models.language_model import LanguageModel
from fedllm.models.live_memory import LiveMemory
from fedllm.models.lora import first_trained_layer, shaped_adapters
from fedllm.models.on_top import put_on_top
from fedllm.models.own_tensors import train_own_tensors
from fedllm.models.prefix import DEFAULT_BUDGET_BYTES
from fedllm.models.quantized import quantize_layers
from fedllm.models.recomputing import recomputed
from fedllm.models.sequences import AT_ONCE
from fedllm.models.token_head import TokenClassifier
from fedllm.models.transformer import Batch, Behaviour, LayerStack, TextClassifier
from fedllm.privacy.dpsgd import (
    added_up_tensor,
    per_sample_gradients,
    per_sample_hooks,
    unit_gradients,
)

# What a round holds of each trained value: start, current, sum, noise, noised mean, the two of a
# unit's gradient and Adam's four, in float64, and two in float32.
_VECTORS_BYTES = 11 * 8 + 2 * 4

Module = TextClassifier | TokenClassifier | LanguageModel
Losses = Callable[[Module, Batch], Tensor]


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Memory of a site's training above the libraries and the tokenizer, in bytes.

    Attributes
    ----------
    weights : int
        Base model in ``model.precision`` and ``model.quantization``, adapter and head.
    step : int
        The most that the frozen part, or the gradients of one record or person (without privacy,
        of a microbatch), take at once. Of a ranking event with any number of answers.
    vectors : int
        What a round holds of the trained values.
    kept_a_record : int
        What is kept of the frozen part for a record of ``model.max_length`` tokens, or of two
        answers of so many; 0 where nothing is frozen below the trained layers.
    kept_at_most : int
        Of all records together in memory; what is beyond goes to disk.
    device : str
        Where the run's ``engine.device`` has the model compute. On a GPU weights and step take its
        memory; trained values and what is kept take the machine's.
    """

    weights: int
    step: int
    vectors: int
    kept_a_record: int
    kept_at_most: int
    device: str = "cpu"

    @property
    def on_device(self) -> int:
        """What lies where the model computes."""
        return self.weights + self.step

    @property
    def training(self) -> int:
        """All but what is kept of records."""
        return self.weights + self.step + self.vectors


def estimate(
    config: RunConfig, folder: Path, head: Head, losses: Losses, sequences: int = 1
) -> MemoryEstimate:
    """Estimate the memory of training with a run's settings; reads no weights.

    Parameters
    ----------
    config : RunConfig
        Without ``privacy.epsilon``, of training without privacy.
    folder : Path
        The base model's; its ``config.json`` is read.
    head : Head
        What the task puts on top.
    losses : callable
        The task's losses of a batch.
    sequences : int
        How many a record has; where more than one, at least.

    Raises
    ------
    ConfigError
        If the model is an encoder-decoder, of which the widths hang on each record.
    CheckpointError
        If no run could use the model.
    """
    base, architecture = read_config(folder)
    if architecture.prompted:
        raise ConfigError(
            "memory is not estimated for encoder-decoders: how long prompts and responses are "
            "decides",
            "leave --run out",
        )
    module, stack, empty = _without_numbers(config, base, architecture, head)
    # A record of several may have more of them, which are computed so many at a time.
    of_one = AT_ONCE if sequences > 1 else 1
    records = config.training.microbatch_size if _several_rows(config) else 1
    rows = max(of_one, sequences * records)
    with empty, LiveMemory() as memory:
        _fill(empty, module, memory)
        weights = memory.live_bytes
        with torch.no_grad(), WatchedLayers(stack.layers) as seen:
            ids = torch.zeros(1, 2, dtype=torch.int64)
            stack.stack(input_ids=ids, attention_mask=torch.ones_like(ids))
        stack.returns(seen.outputs)
        before, memory.peak_bytes = memory.live_bytes, memory.live_bytes
        of_texts = isinstance(head, LabelHead)
        kept = _step(config, module, losses, rows, of_one, of_texts=of_texts)
        step = memory.peak_bytes - before
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return MemoryEstimate(
        weights=weights,
        step=step,
        vectors=_VECTORS_BYTES * trained,
        kept_a_record=sequences * kept,
        kept_at_most=DEFAULT_BUDGET_BYTES if kept else 0,
        device=config.engine.device or "cpu",
    )


def _several_rows(config: RunConfig) -> bool:
    """Whether more than one record is computed at a time."""
    return not config.private or config.unit != "record"


def _without_numbers(
    config: RunConfig, base: PretrainedConfig, architecture: Architecture, head: Head
) -> tuple[Module, LayerStack, FakeTensorMode]:
    """Build a run's model on PyTorch's device without memory."""
    language = isinstance(head, LanguageHead)
    auto: Any = AutoModelForCausalLM if language else AutoModel
    how = attention(base) if language else options(base)
    dtype = torch.bfloat16 if config.model.precision == "bfloat16" else torch.float32
    with torch.device("meta"), quietly():
        backbone: PreTrainedModel = auto.from_config(base, dtype=dtype, **how)
        backbone.requires_grad_(False)
        backbone.config.use_cache = False
        stack_of = cast(PreTrainedModel, backbone.base_model)
        quantize_layers(backbone, architecture.lists, config.model.quantization)
        first = first_trained_layer(config.lora, len(architecture.layer_names(stack_of)))
        if config.lora.trains_base:
            train_own_tensors(backbone, architecture, config.lora)
        elif config.lora.rank:
            shaped_adapters(backbone, architecture, config.lora)
        width = int(base.hidden_size)
        stack = LayerStack(stack_of, architecture.layers, first, Behaviour(width, 0))
        # Where features and heads begin costs nothing that stays.
        plain = config.model.model_copy(update={"feature_center": "zero", "head_start": "zero"})
        module = put_on_top(
            config.model_copy(update={"model": plain}),
            head,
            backbone,
            stack,
            architecture,
            cast(PreTrainedTokenizerBase, None),
        )
    return module.train(), stack, FakeTensorMode(allow_non_fake_inputs=True)


def _fill(empty: FakeTensorMode, module: nn.Module, memory: LiveMemory) -> None:
    """Let a module's tensors seem to lie in this machine's memory."""
    made: dict[int, Tensor] = {}

    def seeming(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            bare = tensor.detach().to("meta")
            fake = empty.fake_tensor_converter.from_meta_and_device(empty, bare, _CPU)
            known = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if known else fake
            memory.count(fake)
        return made[id(tensor)]

    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = cast(Any, seeming(tensor))


_CPU = torch.device("cpu")


def _step(
    config: RunConfig, module: Module, losses: Losses, rows: int, of_one: int, *, of_texts: bool
) -> int:
    """Run the frozen part and a step's gradients; returns what is kept of a sequence."""
    length = config.model.max_length
    ids = torch.zeros(rows, length, dtype=torch.int64)
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": ids[:, 0].clone() if of_texts else ids.clone(),
    }
    kept = 0
    if module.stack.has_frozen_part:
        first = {key: value[:of_one] for key, value in batch.items()}
        kept = module.prefix(first).nbytes // of_one
        states = module.prefix(first)
        batch["states"] = states.new_empty(rows, *states.shape[1:])
    trained = [p for p in module.parameters() if p.requires_grad]
    row_layers = [cast(nn.Linear, module.head)] if of_texts else []
    layers = module.stack.trained_layers if config.training.activation_checkpointing else ()
    with recomputed(layers):
        if not config.private:
            torch.autograd.grad(losses(module, batch).sum(), trained)
            return kept
        if config.lora.trains_base:
            added_up_tensor(unit_gradients(trained, lambda: losses(module, batch)))
            return kept
        with per_sample_hooks(module, row_layers):
            added_up_tensor(per_sample_gradients(trained, lambda: losses(module, batch)))
    return kept
