"""A GGUF file, as llama.cpp keeps models, made into a checkpoint's folder once."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from fedllm.errors import CheckpointError
from fedllm.extras import remedy_of
from fedllm.files import atomic_directory, share_as_new, write_bytes
from fedllm.models import checkpoints
from fedllm.models.contents import reading
from fedllm.models.gguf_header import check_header

if TYPE_CHECKING:
    from gguf import GGUFReader

Precision = Literal["float32", "bfloat16", "float16"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# In which a model is kept whose weights are all stored so; of others float32 loses nothing.
_STORED = {"BF16": "bfloat16", "F16": "float16"}
# Said twice in some files: they must agree with what the model gets.
_SIZES_OF_A_HEAD = ("attention.key_length", "attention.value_length", "rope.dimension_count")
_ALONE = "model.gguf"
_COPY = "copy the file again, and compare its SHA-256 with the publisher's"
_OTHERS = "use the model's safetensors checkpoint, which needs no import"


@dataclass(frozen=True, slots=True)
class GgufFile:
    """What a GGUF file says of itself.

    Attributes
    ----------
    path : Path
        The file.
    architecture : str
        In llama.cpp's words.
    name, licence : str
        As its maker wrote them; empty where nothing is said.
    kinds : mapping of str to int
        How many tensors are stored in which format, such as "Q4_K" or "F32".
    tensors, values : int
        How many there are, and how many numbers they hold.
    settings : mapping of str to object
        What is said of the architecture, without its name in front.
    """

    path: Path
    architecture: str
    name: str
    licence: str
    kinds: Mapping[str, int]
    tensors: int
    values: int
    settings: Mapping[str, Any]

    @property
    def stored_as(self) -> Precision:
        """The smallest precision that keeps the weights as they are."""
        large = [kind for kind in self.kinds if kind != "F32"]
        return _STORED.get(large[0], "float32") if len(large) == 1 else "float32"  # type: ignore[return-value]


def read_gguf(path: Path) -> GgufFile:
    """Read what a GGUF file says, without its weights.

    Raises
    ------
    CheckpointError
        If the package gguf is missing, or the file is none, cut short, a part of several, or of a
        kind that cannot be read.
    """
    try:
        from gguf import GGUFReader
    except ImportError:
        raise CheckpointError(
            f"{path}: reading GGUF needs the package gguf", remedy_of("gguf")
        ) from None
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is no file that is there"
        raise CheckpointError(f"{path} {what}", "give a GGUF file")
    with path.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise CheckpointError(
                f"{path} is no GGUF file",
                "give a model as llama.cpp keeps it, which begins with the letters GGUF",
            )
    with reading(f"{path} is damaged or cut short", _COPY):
        with path.open("rb") as stream:
            check_header(stream, path.stat().st_size)
        reader = GGUFReader(path)
        architecture = _text(reader, "general.architecture")
        prefix = f"{architecture}."
        found = GgufFile(
            path,
            architecture,
            _text(reader, "general.name"),
            _text(reader, "general.license"),
            dict(Counter(tensor.tensor_type.name for tensor in reader.tensors)),
            len(reader.tensors),
            sum(int(tensor.n_elements) for tensor in reader.tensors),
            {
                key.removeprefix(prefix): field.contents()
                for key, field in reader.fields.items()
                if key.startswith(prefix)
            },
        )
        parts = reader.fields.get("split.count")
    if parts is not None and int(parts.contents()) > 1:
        raise CheckpointError(
            f"{path} is one of {int(parts.contents())} parts of a model",
            "join them first (llama-gguf-split --merge)",
        )
    if not found.tensors:
        raise CheckpointError(f"{path} holds no weights", "give the file of the model itself")
    _check_known(found)
    return found


def _text(reader: GGUFReader, key: str) -> str:
    field = reader.fields.get(key)
    return "" if field is None else str(field.contents())


def _check_known(file: GgufFile) -> None:
    """Refuse a kind of model, or a setting of one, that would be left out in silence."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    kinds = cast("Mapping[str, Mapping[str, str | None]]", GGUF_CONFIG_MAPPING)
    known = kinds.get(file.architecture)
    if known is None:
        raise CheckpointError(
            f"{file.path}: models of kind {file.architecture!r:.40} cannot be imported", _OTHERS
        )
    for key, value in file.settings.items():
        if known.get(key) is None and key not in _SIZES_OF_A_HEAD and not _says_nothing(key, value):
            raise CheckpointError(
                f"{file.path} says {file.architecture}.{key} = {value!r:.40}, which is not read: "
                "the imported model would be another",
                _OTHERS,
            )


def _says_nothing(key: str, value: Any) -> bool:
    return key == "rope.scaling.type" and value == "none"


def import_gguf(path: Path, out: Path, precision: Precision | None = None) -> GgufFile:
    """Make a checkpoint's folder of a GGUF file; quantised weights become plain numbers.

    Parameters
    ----------
    path : Path
        The file.
    out : Path
        The new folder; must not be there.
    precision : {"float32", "bfloat16", "float16"}, optional
        In which the weights are kept: the smallest that loses nothing when left out.

    Raises
    ------
    CheckpointError
        See `read_gguf`; or if the model that comes out is not whole, or no run could use it.
    StorageError
        If the disk is full; nothing is left of the folder.
    """
    file = read_gguf(path)
    if out.exists():
        raise CheckpointError(f"{out} is there already", "name another folder, or remove it")
    chosen: Precision = precision or file.stored_as
    with atomic_directory(out) as new:
        with (
            reading(f"{path} cannot be read as a {file.architecture} model", _OTHERS),
            checkpoints.quietly(),
        ):
            model, tokenizer = read_model(file, _DTYPES[chosen])
            model.save_pretrained(new)
            share_as_new(new, "*.safetensors")
            tokenizer.save_pretrained(new)
        write_bytes(new / "README.md", _card(file, chosen).encode())
        _check_usable(new, model)
    return file


def read_model(
    file: GgufFile, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model of a GGUF file, its weights as numbers, and its tokenizer.

    Raises
    ------
    CheckpointError
        If a part of the file would be left out, or taken for something else.
    """
    # In a folder of its own: a library looks for what it knows beside the file.
    with tempfile.TemporaryDirectory() as alone:
        (Path(alone) / _ALONE).symlink_to(file.path.absolute())
        tokenizer = AutoTokenizer.from_pretrained(alone, gguf_file=_ALONE, local_files_only=True)
        return _model(file, Path(alone), dtype), tokenizer


def _model(file: GgufFile, folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    auto: Any = AutoModelForCausalLM
    model, info = auto.from_pretrained(
        folder,
        gguf_file=_ALONE,
        dtype=dtype,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    numbers = sum(parameter.numel() for parameter in model.parameters())
    if info["missing_keys"] or info["mismatched_keys"] or numbers != file.values:
        # What is missing would be random, and what is left over, such as factors of rotary
        # positions, would not count.
        raise CheckpointError(
            f"{file.path} holds {file.values:,} numbers, and the {file.architecture} model that "
            f"transformers makes of it {numbers:,}: a part would be missing",
            _OTHERS,
        )
    size = getattr(model.config, "head_dim", None)
    size = size or model.config.hidden_size // model.config.num_attention_heads
    for key in _SIZES_OF_A_HEAD:
        if file.settings.get(key, size) != size:
            raise CheckpointError(
                f"{file.path} says {file.architecture}.{key} = {file.settings[key]!r:.40}, and "
                f"transformers would make it {size}",
                _OTHERS,
            )
    # What it was read with is a mark at which it would refuse to be saved.
    model.hf_quantizer = None
    del model.config.quantization_config
    return model.eval()  # type: ignore[no-any-return]


@torch.no_grad()
def _check_usable(folder: Path, model: PreTrainedModel) -> None:
    """Load the new folder as a run does, and compare it with what was read."""
    config, architecture = checkpoints.read_config(folder)
    checkpoints.load_tokenizer(folder, config.vocab_size)
    again = checkpoints.load_weights(
        folder, config, architecture, model.dtype, language_model=True
    ).eval()
    ids = torch.arange(min(8, config.vocab_size))[None]
    before, after = model(input_ids=ids).logits.float(), again(input_ids=ids).logits.float()
    if not torch.allclose(before, after, rtol=1e-2, atol=1e-3 * float(before.abs().max())):
        raise CheckpointError(
            f"{folder}: the saved model gives other answers than the file's", _OTHERS
        )


def _card(file: GgufFile, precision: Precision) -> str:
    with file.path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(file.kinds.items()))
    # In YAML a string in double quotes is one as in JSON.
    licence = "".join(c for c in file.licence if c.isalnum() or c in "-._ ")
    head = f'---\nlicense: "{licence}"\n---\n\n' if licence else ""
    return (
        f"{head}# {file.path.stem}\n\n"
        f"Made by `fedllm model import` from a GGUF file of kind {file.architecture}, "
        f"SHA-256 {digest}.\n\n"
        f"Tensors there: {kinds}. Kept here in {precision}. Weights that were quantised keep the "
        "values that they had: what was rounded away does not come back.\n"
    )
