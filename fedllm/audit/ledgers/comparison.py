"""A released model beside the model before training and a twin trained without privacy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from fedllm.canonical import read_object
from fedllm.config import Section
from fedllm.errors import ConfigError
from fedllm.files import write_json
from fedllm.runs.names import COMPARISON as COMPARISON_FILE

Count = Annotated[int, Field(ge=0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class ModelFigures(Section):
    """What one model can do, and what can be got out of it.

    Attributes
    ----------
    name : str
        What the model is called in the report.
    private : bool, optional
        Whether it was trained with differential privacy; none: not on private records.
    accuracy : float
        Share of the questions whose answer has the right key word.
    exact : float
        Share of the questions answered word for word.
    extracted : int
        Secrets that greedy completion gives away.
    exposure : tuple of float
        One for each secret, in bits; see `fedllm.audit.attacks.extraction`.
    """

    name: str
    private: bool | None
    accuracy: Finite
    exact: Finite
    extracted: Count
    exposure: tuple[Finite, ...]


class Example(Section):
    """One question, the right answer, and each model's answer in the order of the models."""

    prompt: str
    right: str
    answers: tuple[str, ...]


class Comparison(Section):
    """Several models on the same questions and the same planted secrets.

    Attributes
    ----------
    questions : int
        Test questions behind `ModelFigures.accuracy`.
    chance : float
        Accuracy of guessing.
    secrets : int
        Planted secrets.
    maximum_exposure, expected_exposure : float
        Of a secret that ranks first, and the mean without any memorisation, in bits.
    models : tuple of ModelFigures
        Before training first, the released model last.
    examples : tuple of Example
        Questions answered by every model.
    """

    questions: Count
    chance: Finite
    secrets: Count
    maximum_exposure: Finite
    expected_exposure: Finite
    models: tuple[ModelFigures, ...]
    examples: tuple[Example, ...] = ()

    def ranked_first(self, model: ModelFigures) -> int:
        """Count the secrets that no candidate beats: who has the list would pick them."""
        return sum(bits >= self.maximum_exposure - 1e-9 for bits in model.exposure)


def save_comparison(comparison: Comparison, run_folder: Path) -> Path:
    """Write the comparison into a run folder, where the report finds it.

    Raises
    ------
    FedllmError
        If the file cannot be written.
    """
    path = run_folder / COMPARISON_FILE
    write_json(path, comparison.model_dump(mode="json"))
    return path


def load_comparison(run_folder: Path) -> Comparison | None:
    """Read a run folder's comparison; none when nobody made one.

    Raises
    ------
    ConfigError
        If the file is there and damaged.
    """
    path = run_folder / COMPARISON_FILE
    if not path.exists():
        return None
    try:
        return Comparison.model_validate(read_object(path.read_bytes()))
    except (OSError, ValueError):
        raise ConfigError(
            f"{path} is damaged: it is not a comparison of models",
            "repeat the comparison, or remove the file to leave that part out of the report",
        ) from None
