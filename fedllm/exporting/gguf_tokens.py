"""A tokenizer as GGUF files hold one, for the two kinds that llama.cpp has for such models."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedllm.errors import ConfigError

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedTokenizerBase

# How a byte-level tokenizer cuts words before it joins bytes, in llama.cpp's words.
_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {
    rf"{_LETTERS}\p{{N}}{{1,3}}{_REST}": "llama-bpe",
    rf"{_LETTERS}\p{{N}}{_REST}": "qwen2",
}
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE = "\u2581"
# gguf.TokenType, in numbers, for the package need not be there.
_NORMAL, _UNKNOWN, _CONTROL, _OWN, _UNUSED, _OF_A_BYTE = 1, 2, 3, 4, 5, 6
# Of a token that no merge makes.
_LOWEST = -1e9
_REMEDY = "take --format merged, which keeps the tokenizer as it is"


@dataclass(frozen=True, eq=False)
class GgufTokens:
    """A tokenizer in GGUF's words.

    Attributes
    ----------
    model : {"gpt2", "llama"}
        Byte-level pairs, or pieces of sentences with their scores.
    pre : str
        How words are cut first.
    tokens : list of str
        By their numbers.
    types : list of int
        What each is (`gguf.TokenType`).
    merges : list of str
        Pairs in the order in which they are joined.
    scores : list of float
        The higher, the earlier a piece is joined; empty for byte-level pairs.
    flags : dict of str to bool
        Of what is added to a text.
    special : dict of str to int
        Numbers of special tokens.
    chat_template : str, optional
        The tokenizer's own.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float]
    flags: dict[str, bool]
    special: dict[str, int]
    chat_template: str | None

    def write(self, writer: GGUFWriter) -> None:
        """Add all of it to a file."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores:
            writer.add_token_scores(self.scores)
        else:
            writer.add_token_merges(self.merges)
        for name, number in self.special.items():
            getattr(writer, f"add_{name}_token_id")(number)
        writer.add_add_bos_token(self.flags["bos"])
        writer.add_add_eos_token(False)
        writer.add_add_space_prefix(self.flags["space_prefix"])
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def gguf_tokens(tokenizer: PreTrainedTokenizerBase, base: Path, rows: int) -> GgufTokens:
    """Return a model's tokenizer as a GGUF file holds it.

    Parameters
    ----------
    base : Path
        The base model's folder.
    rows : int
        Embeddings of the model; rows without a token get a name.

    Raises
    ------
    ConfigError
        If llama.cpp has no such tokenizer.
    """
    backend: Any = tokenizer
    told = json.loads(backend.backend_tokenizer.to_str())
    model = told["model"]
    if model.get("type") != "BPE":
        raise ConfigError(
            f"--format gguf has no tokenizer of type {model.get('type')!r:.30}", _REMEDY
        )
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    pieces = bool(model.get("byte_fallback"))
    pre = "default" if pieces else _pre(told["pre_tokenizer"])
    tokens = [backend.convert_ids_to_tokens(n) or f"[PAD{n}]" for n in range(len(tokenizer))]
    types = _types(told["added_tokens"], tokens, pieces, tokenizer.unk_token_id)
    if pieces:
        # These are looked for in the text as it is.
        tokens = [
            token.replace(_SPACE, " ") if kind == _OWN else token
            for token, kind in zip(tokens, types, strict=True)
        ]
    tokens += [f"[PAD{number}]" for number in range(len(tokens), rows)]
    types += [_UNUSED] * (rows - len(types))
    first = backend("")["input_ids"][:1]
    return GgufTokens(
        model="llama" if pieces else "gpt2",
        pre=pre,
        tokens=tokens,
        types=types,
        merges=merges,
        scores=_scores(merges, tokens) if pieces else [],
        flags={
            "bos": tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id],
            "space_prefix": "Prepend" in json.dumps(told["normalizer"]),
        },
        special=_special(tokenizer),
        chat_template=tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None,
    )


def _pre(told: Any) -> str:
    parts = told.get("pretokenizers", [told]) if told else []
    kinds = [part["type"] for part in parts]
    if kinds == ["ByteLevel"] and parts[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Split", "ByteLevel"]:
        found = _SPLITS.get(str(parts[0]["pattern"].get("Regex")))
        if found:
            return found
    raise ConfigError(
        "--format gguf: llama.cpp does not know how this tokenizer cuts words (it knows those of "
        "GPT-2, Llama 3 and Qwen 2)",
        _REMEDY,
    )


def _types(
    added: list[dict[str, Any]], tokens: list[str], pieces: bool, unknown: int | None
) -> list[int]:
    """Return what each token is."""
    types = [_OF_A_BYTE if pieces and _BYTE.fullmatch(token) else _NORMAL for token in tokens]
    for one in added:
        types[one["id"]] = _CONTROL if one["special"] else _OWN
    if pieces and unknown is not None:
        types[unknown] = _UNKNOWN
    return types


def _scores(merges: list[str], tokens: list[str]) -> list[float]:
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", ""), rank)
    return [-float(ranks[token]) if token in ranks else _LOWEST for token in tokens]


def _special(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    from fedllm.data.template import end_token_id

    found = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "pad": tokenizer.pad_token_id,
        "unk": tokenizer.unk_token_id,
        # What ends a turn, where that is another token.
        "eot": end_token_id(tokenizer),
    }
    return {name: int(number) for name, number in found.items() if number is not None}
