"""Make the kept configurations, figures, results of audits and small files of a coordinator."""

from __future__ import annotations

from pathlib import Path

from fedllm.audit.attacks import results
from fedllm.audit.ledgers.comparison import Comparison, Example, ModelFigures, save_comparison
from fedllm.config import RunConfig, SitePolicy, parse, to_toml
from fedllm.errors import BudgetError, DataError
from fedllm.federation.protocol.refusals import Refusal
from fedllm.files import write_bytes, write_json
from fedllm.runs.job import Job, write_job, write_outcome
from fedllm.runs.metrics import RoundReport, append_report
from fedllm.runs.observer import Start, StepReport
from fedllm.runs.progress import ProgressFile


def full_config() -> RunConfig:
    """Return a run in which no key stands at its default."""
    values = {
        "name": "Full.run-1",
        "task": "classification",
        "seed": 9007199254740993,
        "model": {
            "path": "/srv/models/base",
            "max_length": 64,
            "pooling": "cls",
            "feature_scale": 12.5,
            "feature_center": "label_names",
            "head_start": "label_names",
            "precision": "bfloat16",
        },
        "lora": {
            "rank": 4,
            "alpha": 8.0,
            "target_modules": ["query", "key"],
            "last_layers": 2,
            "freeze_a": True,
        },
        "data": {
            "train": "postgresql://reader@db.example/records",
            "test": "/srv/data/test.jsonl",
            "query": "SELECT text, \"label\" FROM t WHERE note <> '\u007f'",
            "query_timeout_s": 30.0,
            "text": "body",
            "label": "class",
            "prompt": "question",
            "response": "answer",
            "labels": ["one", "zwei", "三"],
            "unit": "patient",
            "max_records_per_unit": 8,
            "partition": "dirichlet",
            "alpha": 0.25,
            "sites": 4,
            "test_limit": 100,
        },
        "rounds": {
            "count": 7,
            "min_sites": 3,
            "optimizer": "momentum",
            "learning_rate": 0.5,
            "head_learning_rate": 0.25,
            "momentum": 0.5,
            "timeout_s": 90.0,
            "evaluate_every": 2,
        },
        "training": {
            "local_steps": 1,
            "batch_size": 32,
            "sampling_rate": 0.125,
            "microbatch_size": 16,
            "optimizer": "sgd",
            "learning_rate": 0.5,
            "head_learning_rate": 1.5,
        },
        "privacy": {
            "epsilon": 3.0,
            "delta": 1e-06,
            "noise": "distributed",
            "clipping_norm": 0.125,
            "colluders": 1,
        },
        "encryption": {"bits": 12, "masks": True, "recover_dropouts": False},
        "evaluation": {"every": 3, "holdout": 0.2, "epsilon": 0.25},
        "engine": {"threads": 2},
    }
    return parse(RunConfig, values, "golden")


def policy() -> SitePolicy:
    """Return a policy in which no key stands at its default."""
    values = {
        "model": {"path": "/srv/models/base"},
        "data": {"train": "/srv/records.jsonl", "unit": "patient"},
        "budget": {"epsilon": 4.0, "delta": 1e-06, "colluders_epsilon": 16.0},
        "allow": {
            "tasks": ["classification", "causal"],
            "models": ["ab" * 32],
            "min_cohort": 3,
            "encryption": "optional",
            "non_private": True,
            "unit": "person",
        },
    }
    return parse(SitePolicy, values, "golden")


def make(folder: Path) -> None:
    """Write ``config``, ``job``, ``refusal``, ``progress`` and ``audit``."""
    write_bytes(folder / "config" / "run.toml", to_toml(full_config()).encode())
    write_bytes(folder / "config" / "site.toml", to_toml(policy()).encode())
    private = Refusal.of_site(DataError("a text of a record"), full_text=False)
    spent = Refusal.of_site(BudgetError("the ceiling is 8", "plan fewer rounds"), full_text=False)
    write_json(folder / "refusal" / "refusals.json", [private.model_dump(), spent.model_dump()])
    _coordinator(folder / "job", spent)
    _progress(folder / "progress")
    _audits(folder)


def _coordinator(folder: Path, refusal: Refusal) -> None:
    moment = "2025-01-02T03:04:05.678+00:00"
    write_job(folder / "finished", Job("finished", "finished", moment, 2))
    write_outcome(folder / "finished", None)
    write_job(folder / "failed", Job("failed", "failed", moment, 1, refusal.model_dump()))
    write_outcome(folder / "failed", refusal.model_dump())
    status = {
        "federation": "north",
        "address": "fed.example.org:9092",
        "roster_version": 2,
        "running": True,
        "started": moment,
        "nodes": [
            {"name": "anne", "node_id": 7, "online": True, "since": moment},
            {"name": "bob", "node_id": None, "online": False, "since": None},
        ],
        "runs": [
            {
                "name": "finished",
                "status": "finished",
                "submitted": moment,
                "starts": 2,
                "error": None,
                "round": 3,
                "rounds": 3,
            }
        ],
    }
    write_json(folder / "status.json", status)


def reports() -> list[RoundReport]:
    """Return the figures of three rounds; a figure that is not finite is kept as null."""
    return [
        RoundReport(round=0, metrics={"loss": 2.75, "accuracy": 0.19}),
        RoundReport(
            round=1,
            sites=2,
            dropped={"carl": "carl: too late"},
            metrics={"loss": 2.25, "accuracy": float("nan")},
            site_metrics={"units": 40.5, "loss": 2.0, "loss_noise": 0.125},
            epsilon={"anne": 1.5, "bob": float("inf")},
            update_norm=0.75,
            bytes_up=1000,
            bytes_down=2000,
            seconds={"total": 1.5, "train": 1.0},
            started="2025-01-02T03:04:05.678+00:00",
            finished="2025-01-02T03:04:07.178+00:00",
        ),
        RoundReport(
            round=2,
            sites=2,
            metrics={"loss": 9.5, "accuracy": 0.01},
            update_norm=64.0,
            rejected={"norm": "the norm is too large", "test": "the loss is 9.5"},
            kept_round=1,
            norm_ratio=1.5,
        ),
    ]


def steps() -> list[StepReport]:
    """Return two lines of pretraining's progress."""
    return [
        StepReport(1, 6, 16, 5.5, 1000.0, 0.5),
        StepReport(3, 6, 48, float("nan"), 1000.0, 0.25, {"bits_per_byte": 7.5}),
    ]


def _progress(folder: Path) -> None:
    folder.mkdir()
    observer = ProgressFile(folder)
    observer.started(Start("run-1", full_config(), "rounds", 2, 0, 3))
    observer.note("WARNING: a word to the ‘wise’")
    observer.site_answered(1, "anne", 1, 3)
    for report in reports():
        append_report(folder / "metrics.jsonl", report)
        observer.finished_round(report)
    for step in steps():
        observer.advanced(step)


def audit_results() -> dict[str, object]:
    """Return one result of each audit."""
    curve = {"false_positive": (0.0, 0.5, 1.0), "true_positive": (0.0, 0.75, 1.0)}
    shares = {"tpr_at_0_1_percent": 0.0, "tpr_at_1_percent": 0.25, **curve}
    attack = results.MembershipAttack(
        name="released", epsilon=8.0, auc=0.625, auc_interval=(0.5, 0.75), **shares
    )
    canaries = (
        results.CanaryAttack(
            kind="white-box",
            canaries=100,
            guesses=40,
            right=30,
            epsilon=0.5,
            epsilon_without_assumption=0.25,
            confidence=0.95,
        ),
        results.CanaryAttack(
            kind="black-box",
            canaries=100,
            guesses=0,
            right=0,
            epsilon=0.0,
            epsilon_without_assumption=0.0,
            confidence=0.95,
        ),
    )
    none = {"name": "before", "epsilon": None}
    return {
        "canaries": results.CanaryResult(claimed=8.0, recomputed=7.5, delta=1e-5, attacks=canaries),
        "membership": results.MembershipResult(
            members=40,
            others=60,
            shadows=4,
            models=(attack, attack.model_copy(update={"name": "twin", "epsilon": None})),
            control=attack.model_copy(update=none),
        ),
        "extraction": results.ExtractionResult(
            secrets=2,
            repeats=3,
            maximum=8.0,
            expected=1.5,
            models=(results.Extracted(**none, extracted=1, exposure=(8.0, 0.125)),),
        ),
        "epsilon": results.EpsilonResult(
            sites=(
                results.SiteEpsilon(
                    site="anne",
                    unit="person",
                    claimed=8.0,
                    recomputed=7.75,
                    colluders=None,
                    delta=1e-5,
                ),
            ),
            findings=(
                results.FoundProblem(severity="warning", subject="anne", text="no heads were kept"),
            ),
        ),
    }


def _audits(folder: Path) -> None:
    for name, result in audit_results().items():
        results.save(folder, name, result)  # type: ignore[arg-type]
    figures = ModelFigures(
        name="released", private=True, accuracy=0.875, exact=0.75, extracted=0, exposure=(1.5, 8.0)
    )
    example = Example(prompt="where to?", right="ward 3", answers=("ward 3",))
    comparison = Comparison(
        questions=8,
        chance=0.25,
        secrets=2,
        maximum_exposure=8.0,
        expected_exposure=1.5,
        models=(figures,),
        examples=(example,),
    )
    save_comparison(comparison, folder / "audit")
