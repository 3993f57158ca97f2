"""Train a tokenizer on the corpus and wrap it in Hugging Face format."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fedllm.errors import CheckpointError, DataError
from fedllm.models.checkpoints import load_tokenizer as load_any_tokenizer
from fedllm.models.contents import check_contents
from fedllm.pretraining.config import Architecture, TokenizerSection

BOUNDARY = "<|begin|>"
CHAT_TOKENS = ("<|user|>", "<|assistant|>", "<|system|>")
END = "<|end|>"
PAD = "<|pad|>"
SENTINELS = 32
_LONGEST_TOKEN_BYTES = 24

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

# Words with the space before them, single digits (so that numbers are spelled, not memorised),
# runs of signs, line ends, other space. Each alternative keeps white space reversible.
_WORDS = r" ?\p{L}[\p{L}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"


def special_tokens(architecture: Architecture) -> list[str]:
    """Return the special tokens in the order of their ids; the padding token is 0."""
    tokens = [PAD, BOUNDARY, END, *CHAT_TOKENS]
    if architecture == "bert":
        tokens += ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    if architecture == "t5":
        tokens += [f"<|extra_{i}|>" for i in range(SENTINELS)]
    return tokens


def train_tokenizer(
    texts: Iterable[str], section: TokenizerSection, architecture: Architecture
) -> PreTrainedTokenizerBase:
    """Train byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) or WordPiece.

    Raises
    ------
    DataError
        If there is no text.
    """
    specials = special_tokens(architecture)
    trainer: trainers.Trainer
    if section.kind == "bpe":
        tokenizer = _bpe()
        trainer = trainers.BpeTrainer(
            vocab_size=section.vocabulary,
            special_tokens=specials,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            max_token_length=_LONGEST_TOKEN_BYTES,
        )
    else:
        tokenizer = _wordpiece()
        trainer = trainers.WordPieceTrainer(
            vocab_size=section.vocabulary, special_tokens=specials, show_progress=False
        )
    first, rest = itertools.tee(texts)
    if next(first, None) is None:
        raise DataError("the corpus has no text to train a tokenizer on", "check data.train")
    del first
    tokenizer.train_from_iterator(rest, trainer)
    return _wrapped(tokenizer, architecture)


def _bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", continuing_subword_prefix="##"))  # noqa: S106
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def _wrapped(tokenizer: Tokenizer, architecture: Architecture) -> PreTrainedTokenizerBase:
    roles = {"pad_token": PAD, "bos_token": BOUNDARY, "eos_token": END}
    if architecture == "bert":
        roles |= {
            "unk_token": "[UNK]",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "mask_token": "[MASK]",
        }
        tokenizer.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(t, tokenizer.token_to_id(t)) for t in ("[CLS]", "[SEP]")],
        )
    elif architecture == "llama":
        tokenizer.post_processor = TemplateProcessing(
            single=f"{BOUNDARY} $A", special_tokens=[(BOUNDARY, tokenizer.token_to_id(BOUNDARY))]
        )
    else:
        tokenizer.post_processor = TemplateProcessing(
            single=f"$A {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
        )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **roles,
        extra_special_tokens=[t for t in special_tokens(architecture) if t not in roles.values()],
        clean_up_tokenization_spaces=False,
    )
    if architecture == "llama":
        wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer and check that it has what pretraining needs.

    Raises
    ------
    CheckpointError
        If the folder holds none, or it lacks a padding token or a document boundary.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} holds no tokenizer", "check the path")
    check_contents(folder, weights=False)
    tokenizer = load_any_tokenizer(folder)
    boundary_id(tokenizer)
    return tokenizer


def boundary_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that begins every document in the shards.

    Raises
    ------
    CheckpointError
        If the tokenizer has none that could.
    """
    for value in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.sep_token_id):
        if value is not None:
            return int(value)
    raise CheckpointError(
        "the tokenizer has no token that can separate documents",
        "give it a bos_token, an eos_token or a sep_token",
    )


def continues_word(tokenizer: PreTrainedTokenizerBase) -> list[bool]:
    """Say for each token id whether it continues the word of the token before it.

    WordPiece marks a continuation by ``##``; byte-level BPE marks a word's beginning by a
    space, so a token of Latin letters without one continues, and so does the first word of
    a text. Tokens of other scripts are words of their own.
    """
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    special = set(tokenizer.all_special_ids)
    if any(token.startswith("##") for token in tokens):
        return [token.startswith("##") and len(token) > 2 for token in tokens]
    return [
        i not in special and token[:1].isascii() and token[:1].isalpha()
        for i, token in enumerate(tokens)
    ]
