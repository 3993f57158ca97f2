"""A short script that runs an exported graph with onnxruntime, tokenizers and numpy alone."""

from __future__ import annotations

from fedllm.config import RunConfig
from fedllm.config.task import pools_text, trains_a_head
from fedllm.data.template import end_token_id, template_of
from fedllm.models.shared import SharedModel
from fedllm.tasks import task_of

_START = '''"""{what}, as JSON Lines, by onnxruntime.

    python use.py TEXT...
"""
import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
texts = sys.argv[1:]
if not texts:
    sys.exit("usage: python use.py TEXT...")

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

session = onnxruntime.InferenceSession(HERE / "model.onnx", providers=["CPUExecutionProvider"])
tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))
'''

_LABELS = """labels = json.loads((HERE / "labels.json").read_text(encoding="utf-8"))["labels"]
tokenizer.enable_truncation({length})
tokenizer.enable_padding(pad_id={pad}, pad_token={token})
encoded = tokenizer.encode_batch(texts)
inputs = {{
    "input_ids": np.array([one.ids for one in encoded], dtype=np.int64),
    "attention_mask": np.array([one.attention_mask for one in encoded], dtype=np.int64),
}}
logits = session.run(None, inputs)[0]
shares = np.exp(logits - logits.max(-1, keepdims=True))
shares /= shares.sum(-1, keepdims=True)
"""

_OF_TEXTS = """for text, row in zip(texts, shares.tolist()):
    best = sorted(zip(labels, row), key=lambda one: -one[1])[:3]
    found = {"text": text, "labels": dict(best)}
    print(json.dumps(found, ensure_ascii=False))
"""

_OF_TOKENS = """tags = ["O", *(f"{place}-{label}" for label in labels for place in "BI")]
for text, one, rows in zip(texts, encoded, shares.tolist()):
    count = sum(one.attention_mask)
    best = [sorted(zip(tags, row), key=lambda one: -one[1])[:3] for row in rows[:count]]
    found = [[part, dict(row)] for part, row in zip(one.tokens[:count], best)]
    print(json.dumps({"text": text, "tokens": found}, ensure_ascii=False))
"""

_WRITTEN = """for prompt in texts:
    ids = tokenizer.encode({text}, add_special_tokens={special}).ids
    start = len(ids)
    if start >= {limit}:
        sys.exit(f"a prompt of {{start}} tokens leaves no room in a model of {limit}")
    for _ in range(min(256, {limit} - start)):
        row = np.array([ids], dtype=np.int64)
        inputs = {{"input_ids": row, "attention_mask": np.ones_like(row)}}
        following = int(session.run(None, inputs)[0][0, -1].argmax())
        if following == {end}:
            break
        ids.append(following)
    found = {{"prompt": prompt, "answer": tokenizer.decode(ids[start:])}}
    print(json.dumps(found, ensure_ascii=False))
"""


def onnx_script(model: SharedModel, config: RunConfig) -> str:
    """Return a script that answers texts with an exported graph."""
    tokenizer = model.tokenizer
    if trains_a_head(config.task):
        what = "Labels of texts" if pools_text(config.task) else "Tags of each text's tokens"
        given = _LABELS.format(
            length=config.model.max_length,
            pad=tokenizer.pad_token_id,
            token=repr(str(tokenizer.pad_token)),
        )
        shown = _OF_TEXTS if pools_text(config.task) else _OF_TOKENS
        return _START.format(what=f"{what}, with probabilities") + given + shown
    text, end = "prompt", tokenizer.eos_token_id
    asked = task_of(config).answering() is not None
    if asked:
        template = template_of(tokenizer)
        inner = "prompt.strip()" if template.trims else "prompt"
        text, end = f"{template.before!r} + {inner} + {template.after!r}", end_token_id(tokenizer)
    longest = getattr(model.module.backbone.config, "max_position_embeddings", None)
    limit = longest or "sys.maxsize"
    written = _WRITTEN.format(text=text, special=not asked, end=end, limit=limit)
    return _START.format(what="What the model writes after each text") + written
