"""The model that all parties share: a frozen Transformer, its adapter, its head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedllm.config import AdapterKind, PreferenceSection, RunConfig, Task
from fedllm.config.task import pools_text
from fedllm.errors import CheckpointError, TrainingError
from fedllm.models import checkpoints, saved
from fedllm.models.behaviour import check_parts, observe
from fedllm.models.contents import held_as
from fedllm.models.device import Place, chosen_device, put_on
from fedllm.models.encoder_decoder import PromptedModel, TwoStacks
from fedllm.models.encoder_decoder_trial import check_pair, observe_pair
from fedllm.models.fit import check_head, check_length, check_padding
from fedllm.models.heads import Head, LabelHead, LanguageHead, TokenHead
from fedllm.models.language_model import LanguageModel
from fedllm.models.lora import add_adapters, first_trained_layer
from fedllm.models.manifest import AdapterManifest, Group
from fedllm.models.on_top import put_on_top
from fedllm.models.own_tensors import train_own_tensors
from fedllm.models.prefix import Dataset, PrefixCache
from fedllm.models.quantized import parameters_of, quantize_layers
from fedllm.models.reference import Reference
from fedllm.models.sampled_words import SampledWords
from fedllm.models.sequences import FrozenPart, sequences_in
from fedllm.models.stillness import forgets
from fedllm.models.token_head import TokenClassifier
from fedllm.models.transformer import Batch, LayerStack, TextClassifier

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(eq=False)
class SharedModel:
    """A frozen base model with trainable adapters, and perhaps a head that is trained too.

    Attributes
    ----------
    module : TextClassifier, TokenClassifier, LanguageModel or PromptedModel
        Maps a batch to logits.
    tokenizer : PreTrainedTokenizerBase
        Of the base model.
    task : str
        What the module is trained for.
    labels : tuple of str
        Names of the classes, in the head's order; empty without a head of labels.
    tagging : str
        By which scheme the outputs of a token's head say where spans of a label are; may be empty.
    preference : PreferenceSection, optional
        How preferences are learned; records are several sequences then.
    sent_reference : bool
        Whether the adapter that the run starts from is an earlier run's, and so comes with each
        order (`fedllm.adapters.referring`).
    reference : Reference
        What the model that the run starts from says of records.
    words : SampledWords
        Lets losses of tokens compare with some words instead of all.
    fingerprint : str
        Of the base model: SHA-256 of its files, and of how its weights are held
        (``model.quantization``).
    files_fingerprint : str
        SHA-256 of the base model's files alone, as sites allow models by.
    earlier_fingerprint : str
        The same as fedllm made it before; adapters of that time name it.
    manifest : AdapterManifest
        Order of the trained tensors in the flat vector.
    initial : ndarray
        (P,) float32, the untrained adapter from which every run starts.
    prefix : PrefixCache
        Outputs of the frozen part, kept by data set.
    method : str
        How the adapter is trained (``lora.method``); `fedllm.adapters` knows what that means.
    tensors : AdapterManifest
        All of adapter and head, also what is frozen now.
    layout : AdapterManifest
        What is trained in the first round, by which saved adapters are known.
    """

    module: TextClassifier | TokenClassifier | LanguageModel | PromptedModel
    tokenizer: PreTrainedTokenizerBase
    task: Task
    labels: tuple[str, ...]
    fingerprint: str
    peft: PeftModel | None
    files_fingerprint: str = ""
    earlier_fingerprint: str = ""
    method: AdapterKind = "lora"
    tagging: str = ""
    preference: PreferenceSection | None = None
    sent_reference: bool = False

    def __post_init__(self) -> None:
        self._parameters = {
            name: p
            for name, p in self.module.named_parameters()
            if p.requires_grad or ".lora_" in name
        }
        self.tensors = self._laid_out(self._parameters)
        self.manifest = self._laid_out(n for n, p in self._parameters.items() if p.requires_grad)
        self.layout, self._start = self.manifest, self.values(self.tensors)
        self._place = Place.of(self.module)
        several = self.several_sequences
        self.prefix = PrefixCache(
            FrozenPart(self.module, self.pad_id) if several else self.module,
            self.module.stack.has_frozen_part,
            pooled=self.module.one_vector,
            place=self._place,
            vectors=sequences_in if several else None,
        )
        self.reference = Reference(self)
        self.words = SampledWords(self)

    @property
    def several_sequences(self) -> bool:
        """Whether a record is several sequences (`fedllm.models.sequences`)."""
        return self.preference is not None

    @property
    def pad_id(self) -> int:
        """The token that fills short sequences up."""
        return int(self.tokenizer.pad_token_id or 0)

    def attach(self, dataset: Dataset, indices: NDArray[np.int64], batch: Batch) -> Batch:
        """Return ``batch`` (the records at ``indices``) with what never changes in a run.

        The states that enter the trained layers, and what the model that the run starts from says
        of records, where losses ask for it; kept or computed, where the model computes.
        """
        attached = self.prefix.attach(dataset, indices, batch)
        if self.preference is None or not self.preference.refers:
            return attached
        return self.reference.attach(dataset, indices, attached)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self._place.device

    def moved(self, batch: Batch) -> Batch:
        """Return a batch on the model's device; see `Place.moved`."""
        return self._place.moved(batch)

    @property
    def trained(self) -> list[nn.Parameter]:
        """The trained tensors in manifest order."""
        return [self._parameters[segment.name] for segment in self.manifest.segments]

    @property
    def own_tensors(self) -> dict[str, nn.Parameter]:
        """What is trained of the base model itself, by its names there; nothing with adapters."""
        return {
            name.removeprefix("backbone."): parameter
            for name, parameter in self._parameters.items()
            if _group(name) == "lora" and ".lora_" not in name
        }

    @property
    def adapts_layers(self) -> bool:
        """Whether anything but a head is trained."""
        return self.peft is not None or bool(self.own_tensors)

    @property
    def row_layers(self) -> list[nn.Linear]:
        """The trained layers that see one vector a record."""
        return [self.module.head] if isinstance(self.module, TextClassifier) else []

    @property
    def number_of_parameters(self) -> int:
        """Parameters of the whole model, frozen ones included."""
        return parameters_of(self.module)

    @property
    def shape(self) -> dict[str, str | int]:
        """Kind of the base model, number of its layers and width of its states."""
        stack = self.module.stack
        return {
            "architecture": str(stack.stack.config.model_type),
            "layers": len(stack.layers),
            "hidden_size": stack.width,
        }

    @property
    def initial(self) -> NDArray[np.float32]:
        """The untrained values (P,), float32, of what is trained."""
        return self.untrained(self.manifest)

    @property
    def frozen_zeros(self) -> frozenset[str]:
        """Frozen tensors of the adapter that are zero, and so let no gradient through."""
        frozen = self.tensors.segments if self.tensors != self.manifest else ()
        trained = {segment.name for segment in self.manifest.segments}
        return frozenset(
            s.name
            for s in frozen
            if s.name not in trained and not bool(self._parameters[s.name].any())
        )

    def adapter(self) -> NDArray[np.float32]:
        """Return a copy of all trained values (P,), float32, in manifest order."""
        return self.values(self.manifest)

    def values(self, manifest: AdapterManifest) -> NDArray[np.float32]:
        """Return a copy of the values that the model holds of some tensors, float32."""
        parts = [self._parameters[s.name].detach().cpu().reshape(-1) for s in manifest.segments]
        # A whole model that was released has nothing that is trained.
        return torch.cat([torch.zeros(0), *parts]).numpy().copy()

    def untrained(self, manifest: AdapterManifest) -> NDArray[np.float32]:
        """Return the values of some tensors before any training, float32."""
        return self._start[self.tensors.places(manifest)]

    def begin_with(self, manifest: AdapterManifest) -> None:
        """Take what the model holds of some tensors for what it began with."""
        self._start[self.tensors.places(manifest)] = self.values(manifest)

    def train_only(self, manifest: AdapterManifest) -> None:
        """From now on train these tensors, and leave the others as they are."""
        if manifest == self.manifest:
            return
        trained = {segment.name for segment in manifest.segments}
        for name, parameter in self._parameters.items():
            parameter.requires_grad_(name in trained)
        self.manifest = manifest

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Put back at the end what the model holds now.

        It is copied into the very memory that it came from, and takes none: a lack of memory can
        leave no other values in place.
        """
        held = [self._parameters[segment.name] for segment in self.tensors.segments]
        before = [values.detach().clone() for values in held]
        try:
            yield
        finally:
            with torch.no_grad():
                for values, earlier in zip(held, before, strict=True):
                    values.copy_(earlier)

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Put back at the end what the model holds now, and what of it is trained."""
        trained = self.manifest
        with self.restored():
            try:
                yield
            finally:
                self.train_only(trained)

    def set_adapter(self, vector: NDArray[np.floating[Any]]) -> None:
        """Put ``vector`` (P,) into the trained tensors.

        Raises
        ------
        TrainingError
            If it has another length, or holds NaN or infinity.
        """
        self.put(self.manifest, vector)

    def put(self, manifest: AdapterManifest, vector: NDArray[np.floating[Any]]) -> None:
        """Put ``vector`` into some tensors of adapter and head; errors as in `set_adapter`."""
        if vector.shape != (manifest.length,):
            raise TrainingError(
                f"an adapter of shape {vector.shape} was given; this model's is "
                f"({manifest.length},)",
                "use the same model, lora and labels for all parties",
            )
        values = np.asarray(vector, dtype=np.float32)
        if not np.isfinite(values).all():
            raise TrainingError("the adapter holds NaN or infinity", "lower the learning rate")
        with torch.no_grad():
            for segment in manifest.segments:
                part = torch.from_numpy(values[segment.slice].copy())
                self._parameters[segment.name].copy_(part.reshape(segment.shape))

    def _laid_out(self, names: Iterable[str]) -> AdapterManifest:
        shapes = ((name, tuple(self._parameters[name].shape)) for name in names)
        return AdapterManifest.of((name, shape, _group(name)) for name, shape in shapes)

    def save_adapter(self, folder: Path, repository: str | None = None) -> None:
        """Write the adapter so that peft can load it onto the base model, and the head beside it.

        Parameters
        ----------
        folder : Path
            The adapter's own.
        repository : str, optional
            Of the base model on a hub; without one it is named by its fingerprint.

        Raises
        ------
        FedllmError
            If the disk is full; the earlier folder is untouched.
        """
        saved.write(self, folder, repository)

    def load_adapter(self, folder: Path) -> None:
        """Read what `save_adapter` wrote.

        Raises
        ------
        CheckpointError
            If a file is missing or damaged, or belongs to another model, task or label set.
        """
        saved.read(self, folder)


def load_shared_model(config: RunConfig, head: Head | tuple[str, ...] = ()) -> SharedModel:
    """Load the base model of a run and give it the run's untrained adapter.

    Parameters
    ----------
    config : RunConfig
        ``model``, ``lora``, ``task`` and ``seed`` are used; the adapter's first values depend
        on these and the head alone, so that every party starts from the same. And
        ``engine.device``, which is of this machine.
    head : Head or tuple of str
        What the task puts on top; a script may give the labels of whole texts alone.

    Raises
    ------
    ConfigError
        If the head does not fit the model, labels are missing, or this machine lacks the device.
    CheckpointError
        If the checkpoint is missing, damaged or not supported.
    """
    if isinstance(head, tuple):
        head = LabelHead(head) if pools_text(config.task) else LanguageHead()
    device = chosen_device(config.engine.device)
    folder = checkpoints.checkpoint_folder(config.model.path)
    before, prints = checkpoints.state(folder), checkpoints.fingerprints(folder)
    base, architecture = checkpoints.read_config(folder)
    labels = () if isinstance(head, LanguageHead) else head.labels
    own_head = isinstance(head, LanguageHead)
    check_head(config, head, str(base.model_type), architecture)
    check_length(architecture, config.model.max_length)
    dtype = torch.bfloat16 if config.model.precision == "bfloat16" else torch.float32
    backbone = checkpoints.load_weights(folder, base, architecture, dtype, language_model=own_head)
    base_model = cast(PreTrainedModel, backbone.base_model)
    quantization = config.model.quantization
    # On the processor, in the same bits everywhere; and the plain weights need not fit on a GPU.
    quantize_layers(backbone, architecture.lists, quantization)
    put_on(backbone, device)
    first = first_trained_layer(config.lora, len(architecture.layer_names(base_model)))
    stack: LayerStack | TwoStacks
    if architecture.prompted:
        width = observe_pair(folder, backbone, architecture)
        stack = TwoStacks(base_model, architecture, first, width)
        # They run one without the other.
        for part in (base_model.get_encoder(), base_model.get_decoder()):
            forgets(part)
    else:
        behaviour = observe(folder, backbone, architecture)
        forgets(base_model)
        stack = LayerStack(base_model, architecture.layers, first, behaviour)
    adapted = None
    if config.lora.trains_base:
        train_own_tensors(backbone, architecture, config.lora)
    elif config.lora.rank:
        adapted = add_adapters(backbone, architecture, config.lora, config.seed)
    tokenizer = checkpoints.load_tokenizer(folder, base.vocab_size)
    check_padding(folder, architecture, tokenizer.pad_token_id)
    module: TextClassifier | TokenClassifier | LanguageModel | PromptedModel
    if isinstance(stack, TwoStacks):
        module = PromptedModel(backbone, stack)
        check_pair(folder, module, architecture)
    else:
        module = put_on_top(config, head, backbone, stack, architecture, tokenizer)
        check_parts(folder, module, architecture)
    if checkpoints.state(folder) != before:
        raise CheckpointError(f"{folder} changed while it was read", "try again when it is whole")
    return SharedModel(
        module=module.train(),
        tokenizer=tokenizer,
        task=config.task,
        labels=labels,
        fingerprint=held_as(prints.current, quantization, config.model.precision),
        files_fingerprint=prints.current,
        # No earlier version quantised.
        earlier_fingerprint=prints.earlier if quantization == "none" else "",
        tagging=head.tagging if isinstance(head, TokenHead) else "",
        peft=adapted,
        method=config.lora.kind,
        preference=config.preferences,
        sent_reference=config.refers_to_start,
    )


def _group(name: str) -> Group:
    return "head" if name.startswith("head.") else "lora"
