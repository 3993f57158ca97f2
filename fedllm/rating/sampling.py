"""Sample the answers that are ranked, from a run's model or a whole one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fedllm.data.records import RowProblems
from fedllm.data.spelling import seen
from fedllm.errors import ConfigError
from fedllm.models.drawing import Sampling
from fedllm.models.generation import Writing
from fedllm.rating.answers import Drawn, Settings
from fedllm.rating.prompts import Question
from fedllm.serving.usable import Usable
from fedllm.tasks.prompting import Prompt

# Each with another seed; who repeats itself so often has no more to say.
_TRIES = 4


class Sampler:
    """Puts each prompt to a model several times.

    Parameters
    ----------
    usable : Usable
        A model that writes.
    settings : Settings
        How.

    Raises
    ------
    ConfigError
        If the model writes no text.
    """

    def __init__(self, usable: Usable, settings: Settings) -> None:
        self._usable, self._settings = usable, settings
        self._generator = usable.require_generator()
        self._gap = "" if usable.prompting is None else usable.prompting.gap

    def check(self, questions: Sequence[Question]) -> list[int]:
        """Return how many tokens of each prompt the model does not read.

        Raises
        ------
        DataError
            If there are prompts that it cannot read at all; names their rows.
        """
        problems, cut = RowProblems(), list[int]()
        for question in questions:
            try:
                cut.append(self._prompt(question).cut)
            except ConfigError as error:
                problems.add(f"row {question.row}", error.message, error.remedy)
        problems.raise_if_any()
        return cut

    @property
    def room(self) -> int:
        """How many tokens of a prompt it reads."""
        return self._usable.room_for_prompt(self._settings.new_tokens)

    def _prompt(self, question: Question) -> Prompt:
        prompt = self._usable.prompt(question.asked, self._settings.new_tokens)
        self._generator.room(prompt.ids)
        return prompt

    def draw(
        self, question: Question, given_up: Callable[[], bool] = lambda: False
    ) -> Drawn | None:
        """Return distinct answers, none of them empty; None where it was given up.

        The same model, settings and prompt give the same answers on this machine, whatever other
        prompts there are.

        Parameters
        ----------
        given_up : callable
            Asked at each token whether to stop.

        Raises
        ------
        ConfigError
            If the model cannot read the prompt; see `check`.
        """
        settings, found = self._settings, dict[str, str]()
        unfinished = set[str]()
        prompt = self._prompt(question)
        for turn in range(_TRIES):
            sampling = Sampling(settings.temperature, settings.top_p, settings.seed + turn)
            writing = Writing(settings.new_tokens, settings.stops, sampling)
            written = dict(
                self._generator.each(
                    [prompt.ids] * settings.answers, writing, given_up=lambda number: given_up()
                )
            )
            if given_up():
                return None
            for number in range(settings.answers):
                text = written[number].text.removeprefix(self._gap)
                if text.strip() and len(found) < settings.answers:
                    if seen(text) not in found and written[number].finish == "length":
                        unfinished.add(text)
                    found.setdefault(seen(text), text)
            if len(found) == settings.answers:
                break
        texts = tuple(found.values())
        places = tuple(place for place, text in enumerate(texts) if text in unfinished)
        return Drawn(texts, prompt.cut, places)
