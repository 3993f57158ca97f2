"""summary.json: read as written; a wrong value is named by its key."""

from __future__ import annotations

import json

import pytest
from support.run_folder import summary

from fedllm.errors import FedllmError
from fedllm.runs.summary import Summary, read_summary, write_summary


def test_a_summary_comes_back_and_what_is_not_finite_is_null(tmp_path):
    made = Summary(**summary(metrics={"loss": float("nan"), "accuracy": 0.5}))
    write_summary(tmp_path, made)
    assert read_summary(tmp_path) == made
    assert made.metrics == {"loss": None, "accuracy": 0.5}
    words = made.describe(tmp_path)
    assert "loss not a number" in words.replace(" -> ", " ").replace("not a number not", "not")
    assert "DIVERGED" in words


def test_keys_of_other_versions_are_kept_or_empty(tmp_path):
    (tmp_path / "summary.json").write_text('{"task": "causal", "colour": "blue"}')
    found = read_summary(tmp_path)
    assert found.model_dump(exclude_unset=True) == {"task": "causal", "colour": "blue"}
    assert "not private" in found.describe(tmp_path)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"rounds": "5"}, "'rounds'"),
        ({"metrics": {"loss": "low"}}, "'metrics.loss'"),
        ({"privacy": {"sites": {"site-a": "much"}}}, "'privacy.sites.site-a'"),
        ({"privacy": {"sites": [1]}}, "'privacy.sites'"),
        ({"privacy": 8}, "'privacy'"),
        ({"seconds": {"total": True}}, "'seconds.total'"),
        ({"site_quality": {"label": {"one": 0.5}}}, "'site_quality.label.one'"),
    ],
)
def test_a_wrong_value_is_named(tmp_path, change, key):
    (tmp_path / "summary.json").write_text(json.dumps(summary(**change)))
    with pytest.raises(FedllmError, match=r"summary\.json") as caught:
        read_summary(tmp_path)
    assert key in caught.value.message


def test_a_small_epsilon_is_shown(tmp_path):
    told = summary()["privacy"] | {"epsilon": 1e-9}
    assert "epsilon 1e-09 at most" in Summary(**summary(privacy=told)).describe(tmp_path)


def test_people_read_names_and_what_colluders_learn(tmp_path):
    told = summary()["privacy"] | {"noise": "distributed", "colluders_epsilon": 53.5871}
    names = {"site_names": ["a", "b"], "site_titles": {"a": "北京医院"}}
    words = Summary(**summary(privacy=told, **names)).describe(tmp_path)
    assert "sites       北京医院 (a), b" in words
    assert "against one site: epsilon 53.59" in words
    # A coordinator does not know it, and with local noise it is no more.
    for value in (None, told["epsilon"]):
        told["colluders_epsilon"] = value
        assert "against one site" not in Summary(**summary(privacy=told)).describe(tmp_path)
    assert "sites       " not in Summary(**summary()).describe(tmp_path)


def test_the_worst_parts_at_the_sites_are_told_with_their_noise(tmp_path):
    figures = {f"label-{n}": {"accuracy": n / 10, "accuracy_noise": 0.05} for n in range(6)}
    parts = {name: {"last": of} for name, of in {**figures, "rare": {}, "rarer": {}}.items()}
    words = Summary(**summary(site_quality={"label": parts})).describe(tmp_path)
    assert (
        "  by label    accuracy at the sites: label-0 0.0000 ± 0.0500, label-1 0.1000 ± 0.0500, "
        "label-2 0.2000 ± 0.0500, 3 better ones, 2 with too few held-out units to tell\n"
    ) in words
    losses = {"a": {"last": {"loss": 1.0}}, "b": {"last": {"loss": 2.0}}}
    words = Summary(**summary(site_quality={"group": losses})).describe(tmp_path)
    assert "  by group    loss at the sites: b 2.0000 ± not a number, a 1.0000" in words
    few = Summary(**summary(site_quality={"group": {"a": {"last": {}}}})).describe(tmp_path)
    assert "at the sites: 1 with too few held-out units to tell\n" in few
    assert "at the sites" not in Summary(**summary()).describe(tmp_path)
