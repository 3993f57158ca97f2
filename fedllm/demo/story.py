"""The demo from beginning to end: make data, pretrain, fine-tune twice, attack, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedllm.audit.attacks.extraction import Exposure
from fedllm.audit.ledgers.comparison import Comparison, ModelFigures, save_comparison
from fedllm.audit.report.page import REPORT_FILE, write_report
from fedllm.config import (
    DataSection,
    EncryptionSection,
    EngineSection,
    LoraSection,
    ModelSection,
    PrivacySection,
    RoundsSection,
    RunConfig,
    TrainingSection,
)
from fedllm.demo.corpus import DemoData, DemoSize, Question, make_demo_data
from fedllm.demo.folder import claim
from fedllm.demo.lexicon import HOSPITALS, WARDS
from fedllm.demo.measuring import examples, measure
from fedllm.demo.telling import Teller
from fedllm.files import write_bytes
from fedllm.pretraining.config import (
    CorpusSection,
    OptimizationSection,
    PretrainConfig,
    ReportSection,
    TokenizerSection,
)
from fedllm.privacy.accounting.words import epsilon_text
from fedllm.runs.names import RUN_TOML
from fedllm.runs.record import read_run_folder
from fedllm.tasks.instruction import Instruction

Pretrain = Callable[[PretrainConfig, Path, bool], Path]
Simulate = Callable[[RunConfig, Path, bool], Any]

_TASK = Instruction()
_MAX_LENGTH = 56


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """How long the demo takes and what it asks for.

    Attributes
    ----------
    size : DemoSize
        How much data is made up.
    pretraining_tokens : int
        Length of the pretraining run.
    rounds : int
        Rounds of both federated runs; one optimiser step each.
    batch_size : int
        Expected persons of one step, over all hospitals.
    epsilon : float
        Asked for by the private run.
    candidates : int
        Codes that each secret is ranked among.
    shown : int
        Questions whose answers are shown.
    threads : int, optional
        CPU threads; all cores when left out.
    telling : bool
        Whether that is enough to learn from. Otherwise the models are measured, to show that it
        works, and no figure of them is shown: it would be one of chance.
    length : str
        How long it takes, in words.
    """

    size: DemoSize = field(default_factory=DemoSize)
    pretraining_tokens: int = 1_000_000
    rounds: int = 50
    batch_size: int = 384
    epsilon: float = 8.0
    candidates: int = 256
    shown: int = 3
    threads: int | None = None
    telling: bool = True
    length: str = "five to ten minutes on two free cores"


FULL = DemoSettings()
QUICK = DemoSettings(
    size=DemoSize(public_bytes=400_000, people=200, questions=48, secrets=2, repeats=4),
    pretraining_tokens=100_000,
    rounds=3,
    batch_size=64,
    candidates=32,
    telling=False,
    length="about a minute on two free cores",
)


@dataclass(frozen=True, slots=True)
class _Measured:
    figures: ModelFigures
    replies: list[str]
    exposure: Exposure


def pretraining_config(data: DemoData, settings: DemoSettings, seed: int) -> PretrainConfig:
    """Return what the demo's model is pretrained by: public text alone."""
    return PretrainConfig(
        name="demo-base",
        seed=seed,
        data=CorpusSection(train=(str(data.public),), held_out=0.01),
        tokenizer=TokenizerSection(vocabulary=1024),
        training=OptimizationSection(
            tokens=settings.pretraining_tokens,
            sequence_length=96,
            batch_rows=32,
            threads=settings.threads,
        ),
        report=ReportSection(evaluation_tokens=10_000),
    )


def run_config(
    name: str, model: Path, data: DemoData, settings: DemoSettings, epsilon: float | None, seed: int
) -> RunConfig:
    """Return one of the two federated runs; they differ in name and privacy alone.

    Without an epsilon there is no unit of protection either: every record counts, as anybody
    would train who does not think of persons.
    """
    persons = settings.size.people + settings.size.secrets
    return RunConfig(
        name=name,
        task=_TASK.name,
        seed=seed,
        model=ModelSection(path=str(model), max_length=_MAX_LENGTH),
        lora=LoraSection(
            rank=8,
            alpha=16.0,
            target_modules=(
                "q_proj",
                "k_proj",
                "v_proj",
                "o_proj",
                "gate_proj",
                "up_proj",
                "down_proj",
            ),
        ),
        data=DataSection(
            train=str(data.train),
            test=str(data.test),
            unit=None if epsilon is None else "person",
            site="hospital",
            max_records_per_unit=settings.size.repeats,
        ),
        rounds=RoundsSection(
            count=settings.rounds,
            min_sites=len(HOSPITALS),
            optimizer="adam",
            learning_rate=6e-3,
            evaluate_every=max(1, settings.rounds // 12),
        ),
        training=TrainingSection(
            local_steps=1,
            optimizer="sgd",
            learning_rate=1.0,
            batch_size=settings.batch_size // len(HOSPITALS),
            microbatch_size=128,
            sampling_rate=settings.batch_size / len(HOSPITALS) / persons,
        ),
        privacy=PrivacySection(epsilon=epsilon, noise="distributed", clipping_norm=0.1),
        encryption=EncryptionSection(),
        engine=EngineSection(threads=settings.threads),
    )


def tell(
    out: Path,
    settings: DemoSettings,
    *,
    pretrain: Pretrain,
    simulate: Simulate,
    teller: Teller,
    seed: int = 0,
    resume: bool = False,
) -> Path:
    """Run the whole demo.

    Parameters
    ----------
    out : Path
        New, or the folder of an earlier demo, which is replaced.
    settings : DemoSettings
        `FULL` or `QUICK`.
    pretrain : callable
        Takes a configuration, a folder, and whether to go on with what is there; returns the
        checkpoint's folder.
    simulate : callable
        Takes a configuration, a run folder, and whether to go on with the run in it; leaves the
        finished run there.
    teller : Teller
        Hears what happens.
    seed : int
        Of the made-up data and the models' first values; noise and sampling stay secret.
    resume : bool
        Go on with the demo in ``out`` instead of replacing it.

    Returns
    -------
    Path
        ``report.html`` in ``out``.

    Raises
    ------
    ConfigError
        If ``out`` holds something else, or no demo to go on with.
    FedllmError
        If a step fails.
    """
    started = time.perf_counter()
    claim(out, not settings.telling, resume)
    data = make_demo_data(out / "data", seed, settings.size)
    _introduce(teller, data, settings, out)

    teller.chapter("2. Pretraining on public text")
    model = pretrain(pretraining_config(data, settings, seed), out / "base", resume)

    def configure(name: str, epsilon: float | None) -> RunConfig:
        return run_config(name, model, data, settings, epsilon, seed)

    def judge(
        name: str, config: RunConfig, private: bool | None, adapter: Path | None
    ) -> _Measured:
        teller.say(f"Asking it {len(data.questions)} questions, and for the secrets.")
        shared = _TASK.load_model(config)
        if adapter is not None:
            shared.load_adapter(adapter)
        answering = _TASK.answering()(shared, _MAX_LENGTH)
        found = _Measured(*measure(answering, data, name, private, settings.candidates, seed))
        teller.say(_in_words(found, data, settings.telling))
        return found

    def train(config: RunConfig, folder: Path) -> None:
        simulate(config, folder, resume and (folder / RUN_TOML).exists())

    private, twin = configure("demo-private", settings.epsilon), configure("demo-twin", None)
    before = judge("before training", private, None, None)

    teller.chapter(f"3. Fine-tuning across hospitals, private (epsilon {settings.epsilon:g})")
    train(private, out / "private")
    released = judge("released (private)", private, True, out / "private" / "adapter")

    teller.chapter("4. The same without privacy, for comparison only")
    teller.say("No noise, no clipping, and every record counts, whoever it belongs to.")
    train(twin, out / "twin")
    leaking = judge("twin (no privacy)", twin, False, out / "twin" / "adapter")

    comparison = _compare(data, settings, [before, leaking, released])
    if settings.telling:
        save_comparison(comparison, out / "private")
    report = _publish(out)
    teller.chapter("5. What came out")
    _show_examples(teller, comparison)
    if settings.telling:
        _show_figures(teller, comparison)
    else:
        teller.say(
            "Three rounds teach a model nothing, so its answers are noise and no figure of the "
            "models is shown: this demo shows that all parts work. `fedllm demo` without --quick "
            "shows what they do."
        )
    _show_spending(teller, out)
    teller.say(f"Report: {report}  ({time.perf_counter() - started:.0f} s)")
    return report


def _introduce(teller: Teller, data: DemoData, settings: DemoSettings, out: Path) -> None:
    size = settings.size
    teller.say(
        f"This takes {settings.length}, longer on busy ones. Everything is kept in {out}; it may "
        "be stopped at any time, and --resume goes on."
    )
    teller.chapter("1. Made-up hospitals")
    teller.say(
        f"Four hospitals ({', '.join(HOSPITALS)}) hold {size.people:,} patients' records each: "
        "what a patient says, and where the hospital sends the patient. They follow a rule "
        "that no public text knows. Each also holds access codes of "
        f"{size.secrets} persons, {size.repeats} records each, which must never come out."
    )
    _show_question(teller, data.questions[0])
    teller.say(f"A secret: {data.secrets[0].prompt}  ->  {data.secrets[0].response}")


def _show_question(teller: Teller, question: Question) -> None:
    teller.say(f"A question: {question.prompt}  ->  {question.response}")


def _in_words(measured: _Measured, data: DemoData, telling: bool) -> str:
    figures = measured.figures
    if not telling:
        return f"{figures.name}: measured; after so short a training its figures tell nothing"
    return (
        f"{figures.name}: right ward {figures.accuracy:.0%} (guessing {1 / len(WARDS):.0%}); "
        f"secrets that come out {figures.extracted} of {len(data.secrets)}; mean exposure "
        f"{measured.exposure.mean:.1f} of {measured.exposure.maximum:.0f} bits"
    )


def _compare(data: DemoData, settings: DemoSettings, measured: Sequence[_Measured]) -> Comparison:
    return Comparison(
        questions=len(data.questions),
        chance=1 / len(WARDS),
        secrets=len(data.secrets),
        maximum_exposure=measured[0].exposure.maximum,
        expected_exposure=measured[0].exposure.expected,
        models=tuple(item.figures for item in measured),
        examples=tuple(examples(data, [item.replies for item in measured], settings.shown)),
    )


def _publish(out: Path) -> Path:
    report = out / REPORT_FILE
    write_bytes(report, write_report(out / "private").read_bytes())
    return report


def _show_examples(teller: Teller, comparison: Comparison) -> None:
    for example in comparison.examples:
        teller.say(f"Question: {example.prompt}")
        teller.say(f"  right answer: {example.right}")
        for figures, reply in zip(comparison.models, example.answers, strict=True):
            teller.say(f"  {figures.name}: {reply}")


def _show_figures(teller: Teller, comparison: Comparison) -> None:
    teller.table(
        ["model", "right ward", "word for word", "secrets out", "ranked first", "exposure (bits)"],
        [
            [
                figures.name,
                f"{figures.accuracy:.1%}",
                f"{figures.exact:.1%}",
                f"{figures.extracted} of {comparison.secrets}",
                f"{comparison.ranked_first(figures)} of {comparison.secrets}",
                f"{sum(figures.exposure) / len(figures.exposure):.2f}",
            ]
            for figures in comparison.models
        ],
    )
    teller.say(
        f"Exposure ranks each true code among {2**comparison.maximum_exposure:.0f} of its form. "
        f"Without memorisation the mean is about {comparison.expected_exposure:.2f} bits; "
        f"{comparison.maximum_exposure:.0f} means that every true code ranks first."
    )


def _show_spending(teller: Teller, out: Path) -> None:
    spent = read_run_folder(out / "private").epsilon
    teller.table(["hospital", "epsilon spent"], [[s, epsilon_text(e)] for s, e in spent.items()])
