"""The part of a run's report that compares models: what they can do, and what they give away."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

from fedllm.audit.ledgers.comparison import Comparison
from fedllm.audit.report.numbers import number, percent
from fedllm.audit.report.plots import exposure_plot


def comparison_part(found: Comparison, texts: Mapping[str, str]) -> SimpleNamespace:
    """Return the part as plain values; ``texts`` is its section of the catalogue."""
    models = [
        SimpleNamespace(
            name=model.name,
            accuracy=percent(model.accuracy),
            exact=percent(model.exact),
            extracted=texts["of"].format(count=model.extracted, total=found.secrets),
            first=texts["of"].format(count=found.ranked_first(model), total=found.secrets),
            exposure=number(sum(model.exposure) / max(1, len(model.exposure))),
        )
        for model in found.models
    ]
    examples = [
        SimpleNamespace(
            prompt=example.prompt,
            right=example.right,
            answers=list(zip((m.name for m in found.models), example.answers, strict=False)),
        )
        for example in found.examples
    ]
    words = {"exposure": texts["axis"], **{k: texts[k] for k in ("maximum", "expected")}}
    return SimpleNamespace(
        models=models,
        examples=examples,
        text=texts["text"].format(
            secrets=found.secrets, candidates=number(round(2**found.maximum_exposure))
        ),
        chance=texts["chance"].format(
            chance=percent(found.chance),
            questions=number(found.questions),
            expected=number(found.expected_exposure),
            maximum=number(found.maximum_exposure),
        ),
        plot=exposure_plot(
            [(m.name, m.exposure) for m in found.models],
            found.maximum_exposure,
            found.expected_exposure,
            words,
            texts["plot"],
        ),
    )
