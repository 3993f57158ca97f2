"""Sample the answers that are ranked, from a run's model or a whole one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from fedllm.data.records import RowProblems
from fedllm.errors import ConfigError
from fedllm.models import checkpoints
from fedllm.models.drawing import Sampling
from fedllm.models.generation import Writing
from fedllm.rating.answers import Drawn, Model, Settings
from fedllm.rating.prompts import Question, seen
from fedllm.runs.start import GIVEN, find_start, is_released
from fedllm.serving.usable import Usable
from fedllm.tasks.prompting import Prompt

# Each with another seed; who repeats itself so often has no more to say.
_TRIES = 4


def model_at(location: Path) -> Model:
    """Tell which model lies in a folder, without loading it.

    Raises
    ------
    ConfigError, CheckpointError
        If there is none; see `fedllm.serving.usable.open_usable`, which loads it.
    """
    if not is_released(location) and (location / "config.json").exists():
        found = checkpoints.fingerprint(location)
    else:
        found = str(find_start(str(location), GIVEN).about["adapter"])
    return Model(name=location.resolve().name, fingerprint=found)


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
                    found.setdefault(seen(text), text)
            if len(found) == settings.answers:
                break
        return Drawn(tuple(found.values()), prompt.cut)
