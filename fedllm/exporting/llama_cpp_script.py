"""A short script that runs an exported GGUF file with llama.cpp's Python package."""

from __future__ import annotations

from fedllm.config import RunConfig
from fedllm.data.template import end_token_id, template_of
from fedllm.models.shared import SharedModel
from fedllm.tasks import task_of

_SCRIPT = '''"""What the model writes after each text, as JSON Lines, by llama.cpp.

    python use.py TEXT...
"""
import json
import sys
from pathlib import Path

if len(sys.argv) < 2:
    sys.exit("usage: python use.py TEXT...")

from llama_cpp import Llama

model = Llama(str(Path(__file__).parent / "model.gguf"), n_ctx=0, verbose=False)
for prompt in sys.argv[1:]:
    text = {text}
    tokens = model.tokenize(text.encode(), add_bos={special}, special=True)
    room = min(256, model.n_ctx() - len(tokens))
    if room < 1:
        sys.exit(f"a prompt of {{len(tokens)}} tokens leaves no room in {{model.n_ctx()}}")
    model.reset()
    answer = []
    for token in model.generate(tokens, temp=0.0, repeat_penalty=1.0):
        if token == {end} or len(answer) == room:
            break
        answer.append(token)
    found = {{"prompt": prompt, "answer": model.detokenize(answer).decode(errors="replace")}}
    print(json.dumps(found, ensure_ascii=False))
'''


def llama_cpp_script(model: SharedModel, config: RunConfig) -> str:
    """Return a script that answers texts with an exported GGUF file."""
    tokenizer = model.tokenizer
    if task_of(config).answering() is None:
        return _SCRIPT.format(text="prompt", special=True, end=tokenizer.eos_token_id)
    template = template_of(tokenizer)
    inner = "prompt.strip()" if template.trims else "prompt"
    text = f"{template.before!r} + {inner} + {template.after!r}"
    return _SCRIPT.format(text=text, special=False, end=end_token_id(tokenizer))
