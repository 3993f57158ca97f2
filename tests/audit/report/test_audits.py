"""What audits left in a run folder, in its report: every figure, finding and language."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support.run_folder import run_config, write_run

from fedllm.audit.attacks.results import (
    CanaryResult,
    EpsilonResult,
    ExtractionResult,
    MembershipResult,
    save,
)
from fedllm.audit.report import page as report
from fedllm.audit.report.page import read_texts, write_report


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run")


def canary_result(**changes):
    attack = {
        "kind": "white-box",
        "canaries": 1000,
        "guesses": 200,
        "right": 187,
        "epsilon": 3.217,
        "epsilon_without_assumption": 2.114,
        "confidence": 0.95,
    }
    values = {"claimed": 8.0, "recomputed": 7.98, "delta": 1e-5, "attacks": [attack]}
    return CanaryResult.model_validate({**values, **changes})


def membership_result(low=0.47, name="made-up <i>", control=0.5):
    model = {
        "name": name,
        "epsilon": 8.0,
        "auc": 0.512,
        "auc_interval": [low, 0.55],
        "tpr_at_0_1_percent": 0.0021,
        "tpr_at_1_percent": 0.0132,
        "false_positive": [0.0, 0.01, 1.0],
        "true_positive": [0.0, 0.0132, 1.0],
    }
    twin = {**model, "name": "twin", "epsilon": None, "auc": 0.741}
    blind = {**model, "name": "before training", "epsilon": None, "auc": control}
    return MembershipResult(
        members=1000, others=900, shadows=8, models=(model, twin), control=blind
    )


def extraction_result(out=0):
    models = [
        {"name": "before training", "epsilon": None, "extracted": 0, "exposure": [1.0, 2.0]},
        {"name": "as the run asks", "epsilon": 8.0, "extracted": out, "exposure": [1.5, 2.5]},
        {"name": "without privacy", "epsilon": None, "extracted": 2, "exposure": [4.0, 4.0]},
    ]
    return ExtractionResult(secrets=2, repeats=1, maximum=4.0, expected=1.2, models=models)


def epsilon_result(severity="note"):
    sites = [
        {
            "site": "Northgate",
            "unit": "person",
            "claimed": 7.93,
            "recomputed": 7.91,
            "colluders": None,
            "delta": 1e-5,
        }
    ]
    return EpsilonResult(
        sites=sites, findings=[{"severity": severity, "subject": "Northgate", "text": "x"}]
    )


def severities(run):
    found = json.loads((run / "report.json").read_text())["findings"]
    return {(item["severity"], item["text"]) for item in found}


def flattened(texts, prefix=""):
    for key, value in texts.items():
        if isinstance(value, dict):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def parts_of(text):
    return text if isinstance(text, list) else [text]


def test_both_languages_have_every_text_with_the_same_places_to_fill():
    english, chinese = (dict(flattened(read_texts(language))) for language in ("en", "zh"))
    assert english.keys() == chinese.keys()
    for key, text in english.items():
        for one, two in zip(parts_of(text), parts_of(chinese[key]), strict=True):
            assert set(re.findall(r"{\w+}", one)) == set(re.findall(r"{\w+}", two)), key


def test_chinese_texts_are_chinese():
    symbols = {"page.lang", "epsilon.label", "promise.plot_axis", "membership.epsilon"}
    for key, text in flattened(read_texts("zh")):
        if key not in symbols | {"ledgers.delta", "origin.run_toml", "origin.summary"}:
            assert all(re.search(r"[\u4e00-\u9fff]", part) for part in parts_of(text)), key


def test_every_text_of_the_catalogue_is_used():
    audit = Path(report.__file__).parent.parent
    # Mechanisms say which words they are told in.
    mechanisms = audit.parent / "mechanisms"
    files = [*audit.rglob("*.py"), *audit.rglob("*.j2"), *mechanisms.glob("*.py")]
    sources = "".join(path.read_text() for path in files)
    # Keys that are put together from a word and a value.
    made = {"dp_unit_site", "dp_unit_person", "dp_unit_record", "noise_local", "noise_distributed"}
    made |= {"site_label", "site_group", "before_training", "as_the_run_asks", "without_privacy"}
    made |= {
        "worse_loss",
        "worse_accuracy",
        "worse_f1",
        "plot_axis",
        "plot_claimed",
        "plot_white",
        "plot_black",
    }
    recorded = {"classification", "instruction", "causal", "token_classification"}
    recorded |= {"poly_degree", "security_bits"}
    recorded |= {"coeff_bits", "bytes_up_per_parameter", "expansion_vs_fp32", "person", "site"}
    for key, _ in flattened(read_texts("en")):
        leaf = key.rpartition(".")[2]
        assert leaf in made | recorded or leaf in sources, key


def test_results_of_audits_are_shown_beside_the_promise(run):
    for name, result in (
        ("canaries", canary_result()),
        ("membership", membership_result()),
        ("extraction", extraction_result()),
        ("epsilon", epsilon_result()),
    ):
        save(run, name, result)
    page = write_report(run).read_text()
    for text in ("3.217", "2.114", "187 of 200", "7.91", "0.512 (0.470–0.550)", "0.21%", "1.32%"):
        assert text in page
    assert "made-up &lt;i&gt;" in page
    assert "<i>" not in page
    twin = json.loads((run / "report.json").read_text())
    (row,) = twin["promise"]["rows"]
    assert row["promised"] == "8"
    assert row["white"] == "3.217"
    assert row["recomputed"] == "7.91"
    assert row["black"] == "–"
    assert [m["epsilon"] for m in twin["membership"]["rows"]] == ["8", "unlimited", "–"]
    assert [m["exposure"] for m in twin["extraction"]["rows"]] == ["1.5", "2", "4"]
    assert {severity for severity, _ in severities(run)} == {"note"}


def test_each_bad_result_is_a_finding_of_its_severity(run):
    bad = canary_result(claimed=3.0)
    assert bad.refuted
    save(run, "canaries", bad)
    save(run, "membership", membership_result(low=0.501))
    save(run, "extraction", extraction_result(out=1))
    save(run, "epsilon", epsilon_result("critical"))
    write_report(run)
    found = severities(run)
    critical = " ".join(text for severity, text in found if severity == "critical")
    assert "at least 3.217; 3 was claimed" in critical
    assert "1 claims in the sites' ledgers do not hold" in critical
    warnings = " ".join(text for severity, text in found if severity == "warning")
    assert "lets an attacker tell training records" in warnings
    assert "1 of 2 planted secrets" in warnings
    order = [item["severity"] for item in json.loads((run / "report.json").read_text())["findings"]]
    assert order == sorted(order, key=["critical", "warning", "note"].index)


def test_a_recomputed_epsilon_without_limit_is_not_hidden_by_the_others(run):
    found = epsilon_result("warning")
    unlimited = found.sites[0].model_copy(update={"site": "Southgate", "recomputed": None})
    save(run, "epsilon", found.model_copy(update={"sites": (*found.sites, unlimited)}))
    write_report(run)
    (row,) = json.loads((run / "report.json").read_text())["promise"]["rows"]
    assert row["recomputed"] == "unlimited"
    (text,) = [text for severity, text in severities(run) if severity == "warning"]
    assert "1 warnings" in text


def test_a_few_members_told_for_certain_are_a_finding_at_any_auc():
    found = membership_result()
    few = found.models[0].model_copy(update={"tpr_at_0_1_percent": 0.03})
    assert not found.told
    assert found.model_copy(update={"models": (few, *found.models[1:])}).told
    # Not when the untrained model finds as many.
    control = found.control.model_copy(update={"tpr_at_0_1_percent": 0.03})
    assert not found.model_copy(update={"models": (few,), "control": control}).told
    # Five of a thousand before the first false alarm may be chance.
    chance = found.models[0].model_copy(update={"tpr_at_0_1_percent": 0.005})
    assert not found.model_copy(update={"models": (chance,)}).told


def test_lower_bounds_are_rounded_down_and_say_how_sure_they_are(run):
    attack = canary_result().attacks[0].model_copy(update={"epsilon": 2.99999})
    save(run, "canaries", canary_result(claimed=3.0, attacks=[attack, attack]))
    write_report(run)
    (text,) = [text for _, text in severities(run) if "canaries showed" in text]
    assert "with 90.0% confidence, an epsilon of at least 2.999; 3 was claimed" in text
    assert "not refuted" in text


def test_members_that_the_untrained_model_tells_as_well_are_no_finding(run):
    save(run, "membership", membership_result(low=0.57, control=0.6))
    write_report(run)
    (text,) = [t for s, t in severities(run) if "told training records" in t]
    assert "untrained model 0.6" in text
    assert not any(severity == "warning" for severity, _ in severities(run))


def test_audits_that_were_not_made_are_said(run):
    write_report(run)
    notes = " ".join(text for severity, text in severities(run) if severity == "note")
    for command in ("audit epsilon", "audit canaries", "audit membership"):
        assert command in notes


def test_a_run_without_privacy_says_unlimited_and_why_summary_has_none(tmp_path):
    run = write_run(tmp_path, config=run_config(privacy={"epsilon": None}))
    page = write_report(run).read_text()
    assert any("its epsilon is unlimited" in t for s, t in severities(run) if s == "critical")
    assert "ledger counts it as infinite" in page
    twin = json.loads((run / "report.json").read_text())
    assert twin["promise"]["rows"][0]["promised"] == "unlimited"


def test_runs_stand_side_by_side(run, tmp_path):
    other = write_run(
        tmp_path / "other", config=run_config(privacy={"epsilon": 1.0}, name="strict")
    )
    save(run, "canaries", canary_result())
    save(other, "canaries", canary_result(claimed=1.0, attacks=[]))
    page = write_report(run, "en", [other]).read_text()
    rows = json.loads((run / "report.json").read_text())["promise"]["rows"]
    assert [(row["run"], row["promised"]) for row in rows] == [("made-up", "8"), ("strict", "1")]
    assert page.count("<svg") >= 3


def test_chinese_report_is_whole_and_says_the_same_figures(run):
    save(run, "canaries", canary_result())
    english = write_report(run, "en").read_text()
    chinese = write_report(run, "zh").read_text()
    assert '<html lang="zh">' in chinese
    assert "运行报告" in chinese
    assert json.loads((run / "report.json").read_text())["language"] == "zh"
    for figure in ("7.933", "3.217", "187", "4,096"):
        assert figure in english
        assert figure in chinese
