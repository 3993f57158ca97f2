"""Let a generative shared model complete prompts and score responses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fedllm.data.records import Record
from fedllm.models.encoder_decoder import PromptedModel
from fedllm.models.generation import Generator, Writing
from fedllm.models.language_model import LanguageModel
from fedllm.models.shared import SharedModel
from fedllm.tasks.instruction import Instruction
from fedllm.tasks.language import token_losses
from fedllm.tasks.prompting import TemplatedPrompting

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
        self._prompting = TemplatedPrompting(model.tokenizer)
        self._generator = Generator(model.module.backbone, model.tokenizer, self._prompting.ends)
        self._max_length = max_length

    def complete(self, prompts: Sequence[str]) -> list[str]:
        """Complete each prompt, most likely token first, until the end token."""
        ids = [self._prompting.prompt(text, None).ids for text in prompts]
        return [one.text for one in self._generator.write(ids, Writing(_MOST_TOKENS), rows=_BATCH)]

    @staticmethod
    def record(prompt: str, response: str) -> Record:
        """Return the record that teaches a response to a prompt."""
        return Record({"prompt": prompt, "response": response}, None, None, "made up")

    @torch.no_grad()
    def losses(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
        """Return the response's loss of each (prompt, response), in nats, summed over tokens."""
        records = [Answering.record(prompt, response) for prompt, response in pairs]
        dataset = Instruction().encode(records, self._model.tokenizer, self._max_length)
        sums = np.zeros(len(pairs))
        for start in range(0, len(pairs), _BATCH):
            indices = np.arange(start, min(start + _BATCH, len(pairs)))
            losses, rows = token_losses(self._model, self._model.moved(dataset.batch(indices)))
            np.add.at(sums, indices[rows.cpu().numpy()], losses.double().cpu().numpy())
        return sums
