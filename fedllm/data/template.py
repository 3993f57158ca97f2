"""The words around a prompt, the same for training and for generation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedllm.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"

# Stands for a text while the template around it is looked at.
_PLACE = "fedllmplaceholder"


def prompt_text(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """Put a prompt into the tokenizer's template, ready for the response to follow.

    The tokenizer's own chat template if it has one (a single user turn with the generation
    prompt), else ``<|user|>...<|assistant|>`` if its vocabulary has these and ``<|end|>``,
    else "Question: ...", "Answer:". A beginning-of-text token that the tokenizer would add
    is in the text already: tokenise it with ``add_special_tokens=False``, as `prompt_ids`
    does.
    """
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": prompt}]
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    start = _beginning(tokenizer)
    if _has_turn_tokens(tokenizer):
        return f"{start}{USER}{prompt}{ASSISTANT}"
    return f"{start}Question: {prompt}\nAnswer:"


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Tokenise a prompt in its template exactly as training did (without truncation)."""
    return list(tokenizer(prompt_text(tokenizer, prompt), add_special_tokens=False)["input_ids"])


def response_text(tokenizer: PreTrainedTokenizerBase, response: str) -> str:
    """Return the text that follows the prompt, with the space that plain text needs."""
    plain = not tokenizer.chat_template and not _has_turn_tokens(tokenizer)
    return f" {response}" if plain else response


def end_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that ends a response: training adds it, generation stops at it.

    The first special token that the chat template writes after an assistant's turn, else
    ``<|end|>``, else the tokenizer's end-of-text token.

    Raises
    ------
    ConfigError
        If the tokenizer has none of them.
    """
    if tokenizer.chat_template:
        for token in tokenizer(_after_response(tokenizer), add_special_tokens=False)["input_ids"]:
            if token in tokenizer.all_special_ids:
                return int(token)
    elif _has_turn_tokens(tokenizer):
        return int(tokenizer.get_added_vocab()[END])
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            "the model's tokenizer has no end-of-text token, so responses would never end",
            f"use a generative model, or set eos_token (or add {USER} {ASSISTANT} {END}) in its "
            "tokenizer",
        )
    return int(tokenizer.eos_token_id)


def content_span(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, int]:
    """Find where in the result of `prompt_text` the prompt itself stands.

    Returns
    -------
    (int, int)
        First character and the one after the last; all of ``text`` if the template does
        more with a prompt than to put text around it.
    """
    before, _, after = prompt_text(tokenizer, _PLACE).partition(_PLACE)
    if text.startswith(before) and text.endswith(after):
        return len(before), len(text) - len(after)
    return 0, len(text)


def _has_turn_tokens(tokenizer: PreTrainedTokenizerBase) -> bool:
    vocabulary = tokenizer.get_added_vocab()
    return all(token in vocabulary for token in (USER, ASSISTANT, END))


def _beginning(tokenizer: PreTrainedTokenizerBase) -> str:
    added = tokenizer("")["input_ids"]
    first = tokenizer.bos_token_id
    return str(tokenizer.bos_token) if first is not None and first in added[:1] else ""


def _after_response(tokenizer: PreTrainedTokenizerBase) -> str:
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _PLACE}]
    return str(tokenizer.apply_chat_template(turns, tokenize=False)).partition(_PLACE)[2]
