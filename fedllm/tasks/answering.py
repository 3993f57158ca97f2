"""Let a generative shared model complete prompts and score responses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fedllm.data.encode import IGNORED
from fedllm.data.records import Record
from fedllm.data.template import end_token_id, prompt_ids
from fedllm.models.encoder_decoder import PromptedModel
from fedllm.models.language_model import LanguageModel
from fedllm.models.shared import SharedModel
from fedllm.tasks.instruction import Instruction
from fedllm.tasks.language import token_losses

_BATCH = 128
_MOST_TOKENS = 24


class Answering:
    """A generative shared model that completes prompts and scores responses.

    Parameters
    ----------
    model : SharedModel
        For an instruction task, with the adapter to look at in place.
    max_length : int
        Tokens kept of a prompt and its response.
    """

    def __init__(self, model: SharedModel, max_length: int) -> None:
        if not isinstance(model.module, LanguageModel | PromptedModel):
            raise ValueError("only a generative model answers")
        self._model = model
        self._module = model.module
        self._max_length = max_length

    @torch.no_grad()
    def complete(self, prompts: Sequence[str]) -> list[str]:
        """Complete each prompt, most likely token first, until the end token."""
        tokenizer = self._model.tokenizer
        # Prompts of equal length go together, so that no padding is needed.
        groups: dict[int, list[int]] = defaultdict(list)
        ids = prompt_ids(tokenizer, prompts)
        for index, tokens in enumerate(ids):
            groups[len(tokens)].append(index)
        replies = [""] * len(prompts)
        for members in groups.values():
            for start in range(0, len(members), _BATCH):
                part = members[start : start + _BATCH]
                rows = self._greedy(torch.tensor([ids[i] for i in part]))
                for index, row in zip(part, rows, strict=True):
                    replies[index] = str(tokenizer.decode(row, skip_special_tokens=True))
        return replies

    def _greedy(self, ids: torch.Tensor) -> list[list[int]]:
        end = end_token_id(self._model.tokenizer)
        start = ids.shape[1]
        ended = torch.zeros(len(ids), dtype=torch.bool)
        for _ in range(_MOST_TOKENS):
            labels = ids.clone()
            labels[:, :start] = IGNORED
            batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
            following = self._module.following(self._model.moved(batch)).argmax(-1).cpu()
            ids = torch.cat([ids, following[:, None]], dim=1)
            ended |= following == end
            if bool(ended.all()):
                break
        rows = ids[:, start:].tolist()
        return [row[: row.index(end)] if end in row else row for row in rows]

    @staticmethod
    def record(prompt: str, response: str) -> Record:
        """Return the record that teaches a response to a prompt."""
        return Record({"prompt": prompt, "response": response}, None, None, "made up")

    @torch.no_grad()
    def losses(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
        """Return the response's loss of each (prompt, response), in nats, summed over tokens."""
        records = [self.record(prompt, response) for prompt, response in pairs]
        dataset = Instruction().encode(records, self._model.tokenizer, self._max_length)
        sums = np.zeros(len(pairs))
        for start in range(0, len(pairs), _BATCH):
            indices = np.arange(start, min(start + _BATCH, len(pairs)))
            losses, rows = token_losses(self._model, self._model.moved(dataset.batch(indices)))
            np.add.at(sums, indices[rows.cpu().numpy()], losses.double().cpu().numpy())
        return sums
