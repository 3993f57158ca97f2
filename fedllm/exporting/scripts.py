"""Short scripts that use an exported model without fedllm; cards show them, exports hold them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Literal

from fedllm.config import RunConfig
from fedllm.config.task import pools_text, trains_a_head
from fedllm.data.template import end_token_id, template_of
from fedllm.exporting.head import Head
from fedllm.exporting.kinds import kind_of
from fedllm.exporting.script_base import arguments, given
from fedllm.models import saved
from fedllm.models.shared import SharedModel
from fedllm.tasks import task_of

SCRIPT = "use.py"
_MOST_NEW_TOKENS = 256

_START = '''"""{what}

    python {script} {arguments}
"""
{modules}
from pathlib import Path

HERE = Path(__file__).parent
{given}
{imports}
{head}
'''

_LOADED = """try:
{lines}
except (KeyError, OSError, RuntimeError, ValueError) as error:
    reason = " ".join(str(error).split())[:200]
    sys.exit(f"the model in {{base}} cannot be loaded, or is not what this is for: {{reason}}")
"""

_SHOW = """    print(json.dumps({found}, ensure_ascii=False))
"""

_TEXTS = """tokens = tokenizer(
    texts, truncation=True, max_length={length}, padding=True, padding_side="right",
    return_tensors="pt",
)
inputs = {{name: tokens[name] for name in ("input_ids", "attention_mask")}}
"""

_GENERATE = """limit = getattr(model.config, "max_position_embeddings", None) or sys.maxsize
for prompt in texts:
    text = {text}
    ids = tokenizer(text, add_special_tokens={special})["input_ids"]
    ids = torch.tensor([{ids}])
    room = min({most}, limit - {start})
    if room < 1 or ids.shape[1] > limit:
        sys.exit(f"a prompt of {{ids.shape[1]}} tokens leaves no room in a model of {{limit}}")
    with torch.no_grad():
        found = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=room,
            do_sample=False, eos_token_id={end}, pad_token_id={pad},
        )
    answer = tokenizer.decode(found[0, {start}:], skip_special_tokens=True)
"""


@dataclass(frozen=True, slots=True)
class Use:
    """How a script finds what it loads.

    Attributes
    ----------
    auto : str
        transformers' class that makes the model.
    base : bool
        Whether the base's folder is its first argument; else the script's own folder holds all.
    adapter : bool
        Whether an adapter of peft lies beside it.
    own : bool
        Whether tensors of the base itself lie beside it.
    plain_head : bool
        Whether the head is one of fedllm's; else transformers' class has it, or there is none.
    about : str
        File beside it that has the labels.
    tokenizer : bool
        Whether a tokenizer lies beside it.
    fast : bool
        Whether the tokenizer is a ``tokenizer.json``.
    dtype : {"float32", "bfloat16"}
        In which the base computes.
    weights : str
        Of `weights_digest`, by which the script knows the base; empty where it is not known.
    """

    auto: str
    base: bool = True
    adapter: bool = True
    own: bool = False
    plain_head: bool = False
    about: str = saved.ABOUT
    tokenizer: bool = True
    fast: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"
    weights: str = ""


def released_use(model: SharedModel, config: RunConfig, fast: bool, weights: str = "") -> Use:
    """Return how a script uses the adapter as a run leaves it, with the base's tokenizer."""
    kind = kind_of(model)
    return Use(
        kind.auto,
        adapter=model.peft is not None,
        own=bool(model.own_tensors),
        plain_head=kind.head is not None,
        tokenizer=False,
        fast=fast,
        dtype=config.model.precision,
        weights=weights,
    )


def script(model: SharedModel, config: RunConfig, use: Use) -> str:
    """Return a script that answers texts with an exported model."""
    head_source = inspect.getsource(Head) if use.plain_head else ""
    lines = [
        _START.format(
            what=_what(config),
            script=SCRIPT,
            arguments=arguments(config.model.path, use.base),
            modules="\n".join(f"import {name}" for name in _modules(use)),
            given=given(SCRIPT, config.model.path, use.base, use.weights),
            imports=_imports(config, use),
            head=f"\n\n{head_source}\n" if head_source else "",
        ).rstrip("\n")
        + "\n",
        _quiet(config, use),
        _model(config, model, use),
        _work(config, model, use),
    ]
    return "".join(lines)


def without_base(use: Use) -> Use:
    """Return the same for a folder that holds the whole model."""
    return replace(use, base=False, adapter=False, own=False, tokenizer=True)


def _what(config: RunConfig) -> str:
    if pools_text(config.task):
        return "Labels of texts, with probabilities, as JSON Lines."
    if trains_a_head(config.task):
        return "Tags of each text's tokens, with probabilities, as JSON Lines."
    return "What the model writes after each text, as JSON Lines."


def _modules(use: Use) -> list[str]:
    return ["hashlib"] * bool(use.base and use.weights) + ["json", "sys"]


def _hushed(config: RunConfig, use: Use) -> bool:
    """Tell whether what transformers says of weights that it misses or leaves out is expected."""
    return trains_a_head(config.task) and (use.plain_head or use.base)


def _quiet(config: RunConfig, use: Use) -> str:
    if not _hushed(config, use):
        return ""
    return (
        "# Of a head that the base brings or lacks; the trained one is put in its place.\n"
        "logging.set_verbosity_error()\n"
    )


def _imports(config: RunConfig, use: Use) -> str:
    lines = ["import torch"]
    if use.plain_head:
        lines.append("from torch import Tensor")
        lines.append("from torch.nn.functional import linear, normalize")
    if use.adapter:
        lines.insert(1, "from peft import PeftModel")
    if use.plain_head or use.own:
        lines.append("from safetensors.torch import load_file")
    hushed = ", logging" if _hushed(config, use) else ""
    lines.append(f"from transformers import {use.auto}, {_tokenizer_class(use)}{hushed}")
    return "\n".join(lines)


def _model(config: RunConfig, model: SharedModel, use: Use) -> str:
    heads = trains_a_head(config.task) and not use.plain_head and use.base
    labels = ""
    lines = []
    if trains_a_head(config.task):
        lines.append(f'about = json.loads((HERE / "{use.about}").read_text(encoding="utf-8"))')
        tags = (
            'labels = ["O", *(f"{place}-{label}" for label in about["labels"] for place in "BI")]'
        )
        lines.append('labels = about["labels"]' if pools_text(config.task) else tags)
        labels = ", num_labels=len(labels)" if heads else ""
    given = f"base, dtype=torch.{use.dtype}{labels}"
    lines.append(f"model = {use.auto}.from_pretrained({given})")
    if use.own:
        lines.append(f'model.load_state_dict(load_file(HERE / "{saved.OWN}"), strict=False)')
    if use.adapter:
        lines.append("model = PeftModel.from_pretrained(model, HERE)")
    lines.append("model.eval()")
    if use.plain_head:
        lines.append(f'tensors = load_file(HERE / "{saved.HEAD}")')
        if getattr(model.module, "center", None) is not None:
            lines.append(f'tensors |= load_file(HERE / "{saved.CENTER}")')
        pooling = 'about["pooling"]' if pools_text(config.task) else '"none"'
        lines.append(f'head = Head(tensors, {pooling}, about["feature_scale"])')
        lines.append("if head.weight.shape[1] != model.config.hidden_size:")
        lines.append('    raise ValueError("its states have another width than the head")')
    lines += _tokenizer(use)
    return _LOADED.format(lines="\n".join(f"    {line}" for line in lines))


def _tokenizer(use: Use) -> list[str]:
    folder = "HERE" if use.tokenizer else "base"
    lines = [f"tokenizer = {_tokenizer_class(use)}.from_pretrained({folder})"]
    if not use.tokenizer:
        lines.append("tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token")
    return lines


def _tokenizer_class(use: Use) -> str:
    return "PreTrainedTokenizerFast" if use.fast else "AutoTokenizer"


def _work(config: RunConfig, model: SharedModel, use: Use) -> str:
    if not trains_a_head(config.task):
        return _generating(config, model)
    answer = (
        'head(model(**inputs).last_hidden_state, inputs["attention_mask"])'
        if use.plain_head
        else "model(**inputs).logits.float()"
    )
    lines = [
        _TEXTS.format(length=config.model.max_length),
        "with torch.no_grad():\n",
        f"    shares = {answer}.softmax(-1)\n",
    ]
    if pools_text(config.task):
        lines.append("for text, row in zip(texts, shares.tolist()):\n")
        lines.append("    best = sorted(zip(labels, row), key=lambda one: -one[1])[:3]\n")
        lines.append(_SHOW.format(found='{"text": text, "labels": dict(best)}'))
    else:
        lines.append("for place, text in enumerate(texts):\n")
        lines.append('    count = int(inputs["attention_mask"][place].sum())\n')
        lines.append(
            '    parts = tokenizer.convert_ids_to_tokens(inputs["input_ids"][place][:count])\n'
        )
        lines.append("    rows = shares[place][:count].tolist()\n")
        lines.append(
            "    best = [sorted(zip(labels, row), key=lambda one: -one[1])[:3] for row in rows]\n"
        )
        lines.append("    found = [[part, dict(row)] for part, row in zip(parts, best)]\n")
        lines.append(_SHOW.format(found='{"text": text, "tokens": found}'))
    return "".join(lines)


def _generating(config: RunConfig, model: SharedModel) -> str:
    tokenizer, prompted = model.tokenizer, kind_of(model).prompted
    asked = task_of(config).answering() is not None
    text, end = "prompt", tokenizer.eos_token_id
    if asked:
        template = template_of(tokenizer)
        inner = "prompt.strip()" if template.trims else "prompt"
        text = f"{template.before!r} + {inner} + {template.after!r}"
        end = end_token_id(tokenizer)
    lines = _GENERATE.format(
        text=text,
        special=not asked,
        # What an encoder reads ends with a token of its own, as in training.
        ids=f"[*ids, {model.module.backbone.config.eos_token_id}]" if prompted else "ids",
        most=_MOST_NEW_TOKENS,
        end=end,
        pad=tokenizer.pad_token_id,
        start="1" if prompted else "ids.shape[1]",
    )
    return lines + _SHOW.format(found='{"prompt": prompt, "answer": answer}')
