"""The words around a prompt, the same for training and for generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from jinja2 import TemplateError

from fedllm.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"
PLAIN_QUESTION = "Question:"

# Stands for a text while the template around it is looked at.
_PLACE, _OTHER = "fedllmplaceholder", "Other words of nobody"
# What a template ends in that is wrong, or asks for what the sandbox has not.
_OF_TEMPLATES = (
    TemplateError,
    TypeError,
    ValueError,
    AttributeError,
    ArithmeticError,
    LookupError,
    RecursionError,
    MemoryError,
)
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
        return Template(f"{start}{PLAIN_QUESTION} ", "\nAnswer:", gap=" ")
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


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation.

    Attributes
    ----------
    role : {"system", "user", "assistant"}
        Who says it.
    content : str
        What is said.
    """

    role: Literal["system", "user", "assistant"]
    content: str = field(repr=False)


def conversation_text(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn]) -> str:
    """Put a conversation into the tokenizer's template, ready for the answer to follow.

    Its own chat template sees all turns. Without one, each question and answer stand as in
    training, one after the other, and what the system says before the first question. Tokenise
    the result with ``add_special_tokens=False``.

    Raises
    ------
    ConfigError
        If the chat template does not take these turns, or holds code that it may not run.
    """
    if tokenizer.chat_template:
        said = [{"role": turn.role, "content": turn.content} for turn in turns]
        return _turns(tokenizer, said, add_generation_prompt=True)
    template = template_of(tokenizer)
    end = tokenizer.decode([end_token_id(tokenizer)])
    system = "".join(f"{turn.content}\n\n" for turn in turns if turn.role == "system")
    start, text = _beginning(tokenizer), ""
    for turn in turns:
        if turn.role == "user":
            around = template.around(system + turn.content)
            text, system = text + (around.removeprefix(start) if text else around), ""
        elif turn.role == "assistant":
            text += f"{template.response(turn.content)}{end}"
    return text


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
    try:
        template = _compile_jinja_template(tokenizer.get_chat_template())
        return str(template.render(messages=turns, **given, **tokenizer.special_tokens_map))
    except _OF_TEMPLATES as error:
        # Its own words may quote what was said.
        raise ConfigError(
            "the chat template of the model's tokenizer does not take these turns, or asks for "
            f"something that no template may have ({type(error).__name__})",
            "check chat_template in the model's folder; some take no turn of a system, or only "
            "questions and answers in turn",
        ) from None


def prompt_text(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """Put a prompt into the tokenizer's template, ready for the response to follow.

    The tokenizer's own chat template if it has one (a single user turn with the generation
    prompt), else ``<|user|>...<|assistant|>`` if its vocabulary has these and ``<|end|>``,
    else "Question: ...", "Answer:". A beginning-of-text token that the tokenizer would add
    is in the text already: tokenise it with ``add_special_tokens=False``.
    """
    return template_of(tokenizer).around(prompt)


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


def brings_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether a tokenizer has a template of its own, and plain text would not do as well."""
    return bool(tokenizer.chat_template) or _has_turn_tokens(tokenizer)


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
