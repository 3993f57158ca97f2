"""The words around a prompt, the same for training and for generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fedllm.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"

# Stands for a text while the template around it is looked at.
_PLACE, _OTHER = "fedllmplaceholder", "Other words of nobody"
_DATE = datetime(2024, 7, 26, tzinfo=UTC)


@dataclass(frozen=True)
class Template:
    """What stands around a prompt and before a response, whatever they are.

    A template that saw the prompts could carry something of one into the text of the next, by a
    clock, a random number or the place of an object in memory: it is run once, without any.

    Attributes
    ----------
    before, after : str
        Text around the prompt; the response follows.
    trims : bool
        Whether white space around a prompt is left out.
    gap : str
        What a response begins with: the space that plain text needs.
    """

    before: str
    after: str
    trims: bool = False
    gap: str = ""

    def around(self, prompt: str) -> str:
        """Put a prompt in."""
        return f"{self.before}{prompt.strip() if self.trims else prompt}{self.after}"

    def response(self, response: str) -> str:
        """Return the text that follows a result of `around`."""
        return f"{self.gap}{response}"

    def span(self, text: str) -> tuple[int, int]:
        """Return the first character of the prompt in a result of `around`, and the one after."""
        return len(self.before), len(text) - len(self.after)


def template_of(tokenizer: PreTrainedTokenizerBase) -> Template:
    """Return what a tokenizer's template puts around a prompt; see `prompt_text`.

    Raises
    ------
    ConfigError
        If its chat template does more with two prompts of ours than to put text around them. What
        it would do with others does not matter: it never sees them.
    """
    if not tokenizer.chat_template:
        start = _beginning(tokenizer)
        if _has_turn_tokens(tokenizer):
            return Template(f"{start}{USER}", ASSISTANT)
        return Template(f"{start}Question: ", "\nAnswer:", gap=" ")
    before, found, after = _rendered(tokenizer, _PLACE).partition(_PLACE)
    plain, padded = (_rendered(tokenizer, text) for text in (_OTHER, f" {_OTHER}\n"))
    for trims in (False, True):
        template = Template(before, after, trims)
        fits = plain == template.around(_OTHER) and padded == template.around(f" {_OTHER}\n")
        if found and _PLACE not in after and fits:
            return template
    raise ConfigError(
        "the chat template of the model's tokenizer does more with a prompt than to put text "
        "around it",
        "give a simpler chat_template in a copy of the model that all parties use",
    )


def _rendered(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    return _turns(tokenizer, [{"role": "user", "content": prompt}], add_generation_prompt=True)


def _turns(
    tokenizer: PreTrainedTokenizerBase,
    turns: list[dict[str, str]],
    *,
    add_generation_prompt: bool = False,
) -> str:
    # transformers' own sandbox, which knows what templates of its models use.
    from transformers.utils.chat_template_utils import _compile_jinja_template

    template = _compile_jinja_template(tokenizer.get_chat_template())
    # What a template is given takes the place of what the sandbox has: one that writes a date
    # writes the same one everywhere and always.
    given: dict[str, Any] = {
        "strftime_now": _DATE.strftime,
        "lipsum": None,
        "cycler": None,
        "joiner": None,
    }
    given |= {"add_generation_prompt": add_generation_prompt}
    given |= {"tools": None, "documents": None}
    return str(template.render(messages=turns, **given, **tokenizer.special_tokens_map))


def prompt_text(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """Put a prompt into the tokenizer's template, ready for the response to follow.

    The tokenizer's own chat template if it has one (a single user turn with the generation
    prompt), else ``<|user|>...<|assistant|>`` if its vocabulary has these and ``<|end|>``,
    else "Question: ...", "Answer:". A beginning-of-text token that the tokenizer would add
    is in the text already: tokenise it with ``add_special_tokens=False``, as `prompt_ids`
    does.
    """
    return template_of(tokenizer).around(prompt)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Tokenise prompts in their template exactly as training did (without truncation)."""
    # Once for all of them: to ask a tokenizer of many added tokens for these takes a while.
    template = template_of(tokenizer)
    texts = [template.around(prompt) for prompt in prompts]
    return [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]


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


def _has_turn_tokens(tokenizer: PreTrainedTokenizerBase) -> bool:
    vocabulary = tokenizer.get_added_vocab()
    return all(token in vocabulary for token in (USER, ASSISTANT, END))


def _beginning(tokenizer: PreTrainedTokenizerBase) -> str:
    added = tokenizer("")["input_ids"]
    first = tokenizer.bos_token_id
    return str(tokenizer.bos_token) if first is not None and first in added[:1] else ""


def _after_response(tokenizer: PreTrainedTokenizerBase) -> str:
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _PLACE}]
    return _turns(tokenizer, turns).partition(_PLACE)[2]
