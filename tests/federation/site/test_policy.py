"""What a site's policy allows, at the edge of each of its limits."""

from __future__ import annotations

import pytest
from support.federation import config_values

from fedllm.config import AllowSection, RunConfig, parse
from fedllm.errors import RefusedError
from fedllm.federation.site.policy import check_allowed
from fedllm.models.contents import held_as

MODEL = "ab" * 32
PRIVATE = {"privacy": {"epsilon": 2.0}}
SHARED = {
    "privacy": {"epsilon": 2.0, "noise": "distributed", "colluders": 2},
    "training": {"local_steps": 1, "optimizer": "sgd", "sampling_rate": 0.1},
    "rounds": {"min_sites": 5},
    "data": {"sites": 5},
}


def sites(count: int) -> dict[str, dict[str, object]]:
    return {**PRIVATE, "rounds": {"min_sites": count}, "data": {"sites": 5}}


def by_label() -> dict[str, dict[str, object]]:
    return {**PRIVATE, "evaluation": {"every": 1, "epsilon": 0.1, "parts": "label"}}


@pytest.mark.parametrize(
    ("sections", "kept", "broken", "words"),
    [
        (PRIVATE, {}, {"tasks": ("causal",)}, "task 'classification' is not in allow.tasks"),
        (PRIVATE, {"models": (MODEL,)}, {"models": ("cd" * 32,)}, "not in allow.models"),
        (sites(4), {"min_cohort": 4}, {"min_cohort": 5}, "allow.min_cohort is 5"),
        (sites(4), {"colluders": 2}, {"colluders": 3}, "fewer than two would be left"),
        (sites(2), {}, {"colluders": 1}, "sums of 2 sites may be opened, of which allow.colluders"),
        (SHARED, {"colluders": 2}, {"colluders": 3}, "counts on 2 sites in league"),
        ({}, {"non_private": True}, {}, "allow.non_private is false"),
        (PRIVATE, {}, {"unit": "person"}, "allow.unit is 'person'"),
        (by_label(), {"parts": ("label",)}, {"parts": ("group",)}, "'label' is not in allow.parts"),
        (by_label(), {}, {"parts": ()}, "tells quality at the sites by label"),
        (
            {**PRIVATE, "encryption": {"scheme": "none"}},
            {"encryption": "optional"},
            {},
            "does not encrypt updates",
        ),
        (
            {**PRIVATE, "encryption": {"scheme": "ckks"}},
            {"masks": "optional"},
            {},
            "allow.masks is 'required'",
        ),
    ],
    ids=str,
)
def test_a_run_at_the_edge_is_allowed_and_one_beyond_is_refused(sections, kept, broken, words):
    config = parse(RunConfig, config_values("base", **sections), "test")
    check_allowed(config, AllowSection(**{"min_cohort": 1, **kept}), MODEL)
    with pytest.raises(RefusedError) as refused:
        check_allowed(config, AllowSection(**{"min_cohort": 1, **broken}), MODEL)
    assert words in refused.value.message
    assert words not in refused.value.remedy


def test_a_policy_names_files_and_a_run_may_round_what_is_in_them():
    """The coordinator names the base as it is held, which no list of files holds."""
    allow = AllowSection(min_cohort=1, models=(MODEL,))
    held = {name: held_as(MODEL, name, "float32") for name in ("none", "int8", "int4")}
    assert held["none"] == MODEL
    for name in held:
        values = config_values("base", **PRIVATE)
        values["model"]["quantization"] = name
        config = parse(RunConfig, values, "test")
        for other, fingerprint in held.items():
            if other == name:
                check_allowed(config, allow, fingerprint)
                continue
            with pytest.raises(RefusedError, match=r"not in allow\.models"):
                check_allowed(config, allow, fingerprint)


def test_a_policy_for_persons_allows_runs_that_protect_more():
    for sections in ({"data": {"unit": "patient"}}, {}):
        privacy = {"epsilon": 2.0} if sections else {"epsilon": 2.0, "unit": "site"}
        config = parse(RunConfig, config_values("base", privacy=privacy, **sections), "test")
        check_allowed(config, AllowSection(unit="person", min_cohort=1), MODEL)
