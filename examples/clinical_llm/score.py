"""Score what a model answers: likelihood of labels, ROUGE-L, exact match and F1 by character.

The adapter is loaded by peft onto the base model, as anybody would use it; fedllm only puts the
prompts together, as it did in training.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from fedllm.data.records import Record
from fedllm.data.template import end_token_id, template_of
from fedllm.models.checkpoints import load_tokenizer
from fedllm.models.generation import Generator, Writing
from fedllm.tasks.instruction import Turns

LABELS = ("yes", "no", "maybe")
_BATCH = 8


@dataclass(frozen=True)
class Reader:
    """A generative model, and how long its prompts may be.

    Attributes
    ----------
    max_length : int
        Tokens of prompt and answer together, as in training.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_length: int

    @classmethod
    def load(cls, folder: Path, adapter: Path | None, max_length: int) -> Reader:
        """Load a base model, and an adapter onto it."""
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, local_files_only=True
        )
        if adapter is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
        tokenizer = load_tokenizer(folder, model.config.vocab_size)
        return cls(model.eval(), tokenizer, max_length)

    def prompts(self, texts: Sequence[str], room: int) -> list[list[int]]:
        """Return the prompts' tokens, cut as in training to leave room for an answer's tokens."""
        # Whatever the right answer is, its length must not show in the prompt.
        filler = "a " * room
        records = [
            Record({"prompt": text, "response": filler}, None, None, "test") for text in texts
        ]
        turns = Turns(self.tokenizer, self.max_length)
        return [list(found.ids[: found.target]) for found in turns.sequences(records)]

    @torch.no_grad()
    def likeliest(self, texts: Sequence[str], answers: Sequence[str]) -> list[str]:
        """Return for each prompt the answer of the highest likelihood, its end token included."""
        template, end = template_of(self.tokenizer), end_token_id(self.tokenizer)
        texts_of_answers = [template.response(answer) for answer in answers]
        found = self.tokenizer(texts_of_answers, add_special_tokens=False)["input_ids"]
        candidates = [[*ids, end] for ids in found]
        chosen = []
        for prompt in self.prompts(texts, max(map(len, candidates))):
            sums = [self._likelihood(prompt, candidate) for candidate in candidates]
            chosen.append(answers[max(range(len(answers)), key=sums.__getitem__)])
        return chosen

    def _likelihood(self, prompt: list[int], answer: list[int]) -> float:
        """Return the logarithm of an answer's likelihood, in nats."""
        ids = torch.tensor([prompt + answer])
        # Logits of the answer's tokens alone: each is told by the place before it.
        logits = self.model(ids, logits_to_keep=len(answer) + 1).logits[0, :-1].float()
        places = torch.arange(len(answer))
        return float(logits.log_softmax(-1)[places, torch.tensor(answer)].sum())

    def complete(self, texts: Sequence[str], new_tokens: int) -> list[str]:
        """Complete prompts, the most likely token first."""
        prompts = self.prompts(texts, new_tokens)
        generator = Generator(self.model, self.tokenizer, [end_token_id(self.tokenizer)])
        written = generator.write(prompts, Writing(new_tokens), rows=_BATCH)
        return [reply.text.strip() for reply in written]


def macro_f1(predicted: Sequence[str], right: Sequence[str]) -> float:
    """Return the mean over labels of F1; a label that is nowhere counts 0."""
    scores = []
    for label in LABELS:
        both = sum(p == r == label for p, r in zip(predicted, right, strict=True))
        told = predicted.count(label) + right.count(label)
        scores.append(2 * both / told if told else 0.0)
    return sum(scores) / len(scores)


def characters(text: str) -> str:
    """Return a text's letters and digits, without marks and white space, in one width and case."""
    plain = unicodedata.normalize("NFKC", text).lower()
    return "".join(char for char in plain if unicodedata.category(char)[0] in "LN")


def character_f1(reply: str, answer: str) -> float:
    """Return F1 of the characters that both have, as often as both have them."""
    one, other = Counter(characters(reply)), Counter(characters(answer))
    both = (one & other).total()
    return 2 * both / (one.total() + other.total()) if both else 0.0


def rouge_l(replies: Sequence[str], answers: Sequence[str]) -> float | None:
    """Return the mean ROUGE-L (F1, stemmed); None without the package rouge-score."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        return None
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    pairs = zip(answers, replies, strict=True)
    return sum(scorer.score(a, r)["rougeL"].fmeasure for a, r in pairs) / len(answers)


def majority(train: Sequence[dict[str, Any]], test: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the figures of always saying what is most frequent in training."""
    ((label, _),) = Counter(row["response"] for row in train).most_common(1)
    right = [row["response"] for row in test]
    return {
        "accuracy": right.count(label) / len(right),
        "macro_f1": macro_f1([label] * len(right), right),
    }


def scored(reader: Reader, task: str, rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Score a model on some test records of a task."""
    prompts, answers = [row["prompt"] for row in rows], [row["response"] for row in rows]
    if task == "pubmedqa":
        chosen = reader.likeliest(prompts, LABELS)
        hits = sum(c == a for c, a in zip(chosen, answers, strict=True))
        return {"accuracy": hits / len(rows), "macro_f1": macro_f1(chosen, answers)}
    if task == "chinese":
        replies = reader.complete(prompts, 24)
        right = [json.loads(row["answers"]) for row in rows]
        exact = [
            any(characters(reply) == characters(answer) for answer in several)
            for reply, several in zip(replies, right, strict=True)
        ]
        best = [
            max(character_f1(reply, answer) for answer in several)
            for reply, several in zip(replies, right, strict=True)
        ]
        return {"exact": sum(exact) / len(rows), "f1": sum(best) / len(rows)}
    return {"rouge_l": rouge_l(reader.complete(prompts, 64), answers)}
