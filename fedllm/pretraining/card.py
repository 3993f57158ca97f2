"""The model card: what a checkpoint was made from, how, and how well it came out."""

from __future__ import annotations

from fedllm.pretraining.config import PretrainConfig
from fedllm.pretraining.manifest import Manifest, Part

_FRONT_MATTER = """---
library_name: transformers
pipeline_tag: {pipeline}
tags: [fedllm]
---
"""
_PIPELINES = {"causal": "text-generation", "masked": "fill-mask", "span": "text2text-generation"}


def model_card(
    config: PretrainConfig,
    manifest: Manifest,
    parameters: int,
    fingerprint: str,
    curve: list[dict[str, float]],
) -> str:
    """Return the README.md of a checkpoint, in the Hugging Face Hub's format.

    Parameters
    ----------
    fingerprint : str
        SHA-256 of the weights' file.
    curve : list of dict
        The evaluations: ``step``, ``tokens`` and the held-out measures.
    """
    training = config.training
    return "\n".join(
        [
            _FRONT_MATTER.format(pipeline=_PIPELINES[config.objective]),
            f"# {config.name}",
            "",
            f"A {config.model.architecture} model of {parameters:,} parameters, pretrained "
            f"centrally by fedllm (objective: {config.objective}) as the shared base of a "
            "federation. Public text only; no private record was seen.",
            "",
            f"- weights, SHA-256: `{fingerprint}`",
            f"- data manifest, SHA-256: `{manifest.fingerprint}`",
            f"- {training.steps:,} steps of {training.batch_rows} rows of "
            f"{training.sequence_length} tokens; {training.optimizer}, peak learning rate "
            f"{training.learning_rate:g}, {training.precision}, seed {config.seed}",
            "",
            "## Data",
            "",
            "| source | files | documents | tokens | bytes of text | duplicates left out | "
            "also held out or excluded |",
            "|---|---|---|---|---|---|---|",
            *(_row(part) for part in manifest.sources),
            "",
            f"Held out: {sum(p.documents for p in manifest.evaluation):,} documents, "
            f"{sum(p.tokens for p in manifest.evaluation):,} tokens.",
            "",
            *(
                f"- `{file['name']}`: {file['bytes']:,} bytes, SHA-256 `{file['sha256']}`"
                for part in (*manifest.sources, *manifest.evaluation)
                for file in part.files
            ),
            "",
            "## Held-out measure",
            "",
            *_curve(curve),
            "",
            "## Limits",
            "",
            "The model knows its corpus and nothing else, states falsehoods fluently, and "
            "may repeat public text word for word. It is a base for fine-tuning, not for "
            "advice of any kind.",
            "",
        ]
    )


def _row(part: Part) -> str:
    names = ", ".join(f"`{file['name']}`" for file in part.files)
    figures = (part.documents, part.tokens, part.text_bytes, part.duplicates, part.excluded)
    return f"| {names} | {len(part.files)} | " + " | ".join(f"{n:,}" for n in figures) + " |"


def _curve(curve: list[dict[str, float]]) -> list[str]:
    measures = [key for key in (curve[-1] if curve else {}) if key not in ("step", "tokens")]
    if not measures:
        return ["No text was held out."]
    return [
        "| step | tokens | " + " | ".join(m.replace("_", " ") for m in measures) + " |",
        "|---|---|" + "---|" * len(measures),
        *(
            f"| {point['step']:,} | {point['tokens']:,} | "
            + " | ".join(f"{point[m]:.4f}" for m in measures)
            + " |"
            for point in curve
        ),
    ]
