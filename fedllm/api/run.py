"""What came of a run: its figures, its model to be asked, its audits and report."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from markupsafe import Markup

from fedllm.config import RunConfig
from fedllm.privacy.accounting.words import epsilon_text
from fedllm.runs.metrics import RoundReport, read_reports
from fedllm.runs.names import METRICS
from fedllm.runs.record import read_config, require_run
from fedllm.runs.shelf import Compared, Listed, listed
from fedllm.runs.shelf import compare as compare_folders
from fedllm.runs.summary import Summary, read_summary
from fedllm.visible import visible

if TYPE_CHECKING:
    from fedllm.audit.ledgers.figures import EpsilonAudit
    from fedllm.serving.usable import Usable
    from fedllm.tasks.predicting import Prediction

Language = Literal["en", "zh"]
_ROWS = 16


class Run:
    """A finished run; `open_run` and `simulate` return one.

    Parameters
    ----------
    folder : Path
        The run's.

    Raises
    ------
    ConfigError
        If there is no finished run in it.
    """

    def __init__(self, folder: Path) -> None:
        require_run(folder)
        self.folder = folder

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    def __str__(self) -> str:
        return self.summary.describe(self.folder)

    def _repr_html_(self) -> str:
        """Return what a notebook shows of it."""
        rows = {**self.metrics, "epsilon": epsilon_text(self.epsilon), "folder": str(self.folder)}
        cells = Markup("").join(
            Markup("<tr><th scope='row'>{}</th><td>{}</td></tr>").format(
                visible(name), f"{value:.4g}" if isinstance(value, float) else visible(str(value))
            )
            for name, value in rows.items()
        )
        return str(
            Markup("<table><caption>{}</caption>{}</table>").format(visible(self.name), cells)
        )

    @cached_property
    def config(self) -> RunConfig:
        """What the run asked for."""
        return read_config(self.folder)

    @cached_property
    def summary(self) -> Summary:
        """What stands in ``summary.json``."""
        return read_summary(self.folder)

    @cached_property
    def rounds(self) -> tuple[RoundReport, ...]:
        """The figures of each round; round 0 is the evaluation before training."""
        return tuple(read_reports(self.folder / METRICS))

    @property
    def name(self) -> str:
        """The run's name."""
        return self.summary.run

    @property
    def metrics(self) -> dict[str, float]:
        """Test metrics after the run, on the public test file; without those that are no number."""
        return {name: value for name, value in self.summary.metrics.items() if value is not None}

    @property
    def epsilon(self) -> float | None:
        """What was spent at a site at most; None without privacy, and without a bound.

        In a deployment, where only the sites know it, what was promised.
        """
        value = self.summary.privacy.get("epsilon")
        return float(value) if isinstance(value, int | float) else None

    def curve(self, measure: str, at_sites: bool = False) -> list[tuple[int, float]]:
        """Return the rounds in which a measure was taken, and its values.

        Parameters
        ----------
        measure : str
            Such as "loss" or "accuracy".
        at_sites : bool
            On what the sites hold out instead of the public test file; noised.
        """
        told = (
            (report.round, (report.site_metrics if at_sites else report.metrics) or {})
            for report in self.rounds
        )
        return [(at, value) for at, of in told if (value := of.get(measure)) is not None]

    def table(self) -> list[dict[str, Any]]:
        """Return a row for each round, such as ``pandas.DataFrame`` takes."""
        return [
            {
                "round": report.round,
                "sites": report.sites,
                "left_out": len(report.dropped),
                **(report.metrics or {}),
                "epsilon": report.largest_epsilon,
                "bytes_up": report.bytes_up,
                "bytes_down": report.bytes_down,
                "seconds": report.seconds.get("total"),
            }
            for report in self.rounds
        ]

    @cached_property
    def model(self) -> Usable:
        """The run's model, loaded when it is first asked for."""
        return self.open_model()

    def open_model(
        self,
        base: str | PathLike[str] | None = None,
        device: str | None = None,
        max_length: int | None = None,
    ) -> Usable:
        """Load the run's model otherwise than `model` does.

        Parameters
        ----------
        base : path, optional
            Where its base model is, if not where the run says.
        device : str, optional
            Such as "cpu" or "cuda".
        max_length : int, optional
            Tokens of a text that are read.

        Raises
        ------
        FedllmError
            If it cannot be loaded.
        """
        from fedllm.serving.usable import open_usable

        return open_usable(self.folder, None if base is None else str(base), device, max_length)

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """Label texts, as ``fedllm predict`` does.

        Returns
        -------
        list of Prediction
            For each text: ``answer``, the likeliest label or the labelled spans, and more.

        Raises
        ------
        ConfigError
            If the model has no labels.
        """
        return list(self.model.require_predicting().predict(_several(texts)))

    def judge(self, asked: Sequence[tuple[str, Sequence[str]]]) -> list[list[float]]:
        """Return scores of the answers of each (prompt, answers), by what the run learned to like.

        Raises
        ------
        ConfigError
            If the model judges no answers.
        """
        judging = self.model.judging
        if judging is None:
            from fedllm.errors import ConfigError

            raise ConfigError(
                f"{self.model.what} judges no answers",
                "open a run with preference.objective 'reward' or 'selector'",
            )
        return judging.judge([(prompt, "", list(answers)) for prompt, answers in asked])

    def generate(
        self,
        prompts: Sequence[str],
        *,
        new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> list[str]:
        """Answer prompts, as ``fedllm generate`` does; what each parameter means stands there.

        Raises
        ------
        ConfigError
            If the model writes no text, or a number is out of its range.
        """
        from fedllm.commands.asking import writing_of

        model, texts = self.model, _several(prompts)
        generator = model.require_generator()
        writing = writing_of(new_tokens, temperature, top_p, seed, list(stop))
        ids = [model.prompt(text, new_tokens).ids for text in texts]
        done = dict(generator.each(ids, writing, rows=_ROWS))
        gap = "" if model.prompting is None else model.prompting.gap
        return [done[number].text.removeprefix(gap) for number in range(len(texts))]

    def audit_epsilon(self) -> EpsilonAudit:
        """Recompute every epsilon from the sites' ledgers, as ``fedllm audit epsilon`` does.

        The result is kept in the run's folder, for the report. What does not hold is among its
        ``findings``, and ``critical`` tells whether there is any such.

        Raises
        ------
        FedllmError
            If there is no ledger in the folder, or one cannot be read.
        """
        from fedllm.audit.attacks.results import save
        from fedllm.audit.ledgers.epsilon import audit_ledgers, find_ledgers
        from fedllm.audit.ledgers.text import as_result

        sources = find_ledgers([self.folder])
        found, folder = audit_ledgers(sources), sources.kept_in()
        if folder is not None:
            save(folder, "epsilon", as_result(found, folder))
        return found

    def report(self, language: Language = "en", beside: Sequence[Run] = ()) -> Path:
        """Write ``report.html``, as ``fedllm audit report`` does, and return where it is.

        Parameters
        ----------
        language : {"en", "zh"}
            Of the texts.
        beside : sequence of Run
            Runs to show promise and attacks beside.
        """
        from fedllm.audit.report.page import write_report

        return write_report(self.folder, language, [run.folder for run in beside])


def open_run(folder: str | PathLike[str]) -> Run:
    """Return a finished run.

    Raises
    ------
    ConfigError
        If there is none in the folder; says what to give instead.
    """
    return Run(Path(folder))


def list_runs(*folders: str | PathLike[str]) -> list[Listed]:
    """Return what a list says of runs, or of all in folders of runs; ``runs`` if none is given.

    Raises
    ------
    ConfigError
        If a folder is not there, or there is no run in any.
    """
    return listed([Path(folder) for folder in folders or ("runs",)])


def compare(*runs: Run | str | PathLike[str]) -> Compared:
    """Put finished runs beside one another, as ``fedllm runs compare`` does.

    Raises
    ------
    ConfigError
        If there are fewer than two, or one is no finished federated run.
    """
    return compare_folders([run.folder if isinstance(run, Run) else Path(run) for run in runs])


def _several(texts: Sequence[str]) -> list[str]:
    # A text is a sequence of texts, too.
    return [texts] if isinstance(texts, str) else list(texts)
