"""A run goes on from an earlier run's adapter: what fits is taken over, what does not is named."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from support.federation import LABELS, records, small_config, write_jsonl
from support.tasks import load_model

from fedllm.adapters import adapter_of
from fedllm.audit.report.page import write_report
from fedllm.errors import ConfigError, FedllmError
from fedllm.models.start import take_over
from fedllm.personal.comparing import compare_simulated
from fedllm.runs.checkpoints import load_checkpoint
from fedllm.runs.lineage import ancestors
from fedllm.runs.record import read_run_folder
from fedllm.runs.start import find_start
from fedllm_client.dividing import divide
from fedllm_server.simulation import simulate

METHODS = ("lora", "ffa", "ffa_orthonormal", "rolora", "fedsvd", "core")


@pytest.fixture
def config(tiny_checkpoint, tmp_path):
    train = write_jsonl(tmp_path / "train.jsonl", records(60))
    test = write_jsonl(tmp_path / "test.jsonl", records(12, seed=9))

    def make(**sections):
        sections["data"] = {
            "train": str(train),
            "test": str(test),
            "labels": None,
            **sections.get("data", {}),
        }
        sections["rounds"] = {"rollback_rise": 0.0, **sections.get("rounds", {})}
        return small_config(tiny_checkpoint("bert"), **sections)

    return make


@pytest.fixture
def earlier(config, tmp_path):
    def make(method="lora", name="earlier", **sections):
        lora = {"rank": 2, "method": method, **sections.pop("lora", {})}
        asked = config(name=name, lora=lora, **sections)
        simulate(asked, tmp_path / name, observers=[])
        return asked, tmp_path / name

    return make


def started(config, folder, **sections):
    model = {"start": str(folder), **sections.pop("model", {})}
    return config(name="later", model=model, **sections)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_begins_where_another_ended(config, earlier, tmp_path, method):
    asked, folder = earlier(method)
    later = started(config, folder, lora=asked.lora.model_dump(mode="json"))
    summary = simulate(later, tmp_path / "later", observers=[])
    before = json.loads((folder / "summary.json").read_text())
    # What was measured last there is what is measured first here.
    assert summary.metrics_before == pytest.approx(before["metrics"], rel=1e-6)
    told = summary.started_from
    assert told["run"] == "earlier"
    assert told["run_id"] == before["run_id"]
    assert told["head"] is True
    assert told["adapter"] == find_start(str(folder)).about["adapter"]
    assert load_checkpoint(tmp_path / "later" / "checkpoints").started_from == told
    assert json.loads((tmp_path / "later" / "summary.json").read_text())["started_from"] == told


def test_one_that_begins_untrained_says_nothing(earlier):
    _, folder = earlier()
    assert "started_from" not in json.loads((folder / "summary.json").read_text())
    assert "started_from" not in json.loads(
        next((folder / "checkpoints").glob("*/state.json")).read_text()
    )


def test_it_goes_on_with_resume_though_the_earlier_run_is_gone(
    config, earlier, tmp_path, monkeypatch
):
    from fedllm_server import loop

    _, folder = earlier()
    later = started(config, folder)
    whole = simulate(later, tmp_path / "whole", observers=[])
    right = loop.save_checkpoint

    def dies(place, state, vault):
        path = right(place, state, vault)
        if state.round == 1 and state.report is not None:
            raise KeyboardInterrupt
        return path

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", dies)
        with pytest.raises(KeyboardInterrupt):
            simulate(later, tmp_path / "cut", observers=[])
    shutil.rmtree(folder)
    again = simulate(later, tmp_path / "cut", resume=True, observers=[])
    assert again.adapter_sha256 == whole.adapter_sha256
    assert again.started_from == whole.started_from


def test_sites_hear_nothing_of_where_it_lies(config, earlier):
    from fedllm.federation.protocol.terms import make_terms

    _, folder = earlier()
    later = started(config, folder)
    terms = make_terms(later, load_model(later, LABELS), "run-1")
    assert str(folder) not in terms.config_text
    assert terms.config.model.start is None
    assert "\nstart" not in terms.config_text


def test_the_report_says_what_it_started_from_and_that_epsilons_add_up(config, earlier, tmp_path):
    _, folder = earlier(privacy={"epsilon": 3.0})
    out = tmp_path / "later"
    summary = simulate(started(config, folder, privacy={"epsilon": 2.0}), out, observers=[])
    assert summary.started_from["epsilon"] == pytest.approx(3.0, abs=0.1)
    page = (out / "report.html").read_text()
    assert "earlier" in page
    assert "the epsilon of both" in page
    assert summary.started_from["adapter"] in page
    assert "the epsilon of both" in summary.describe(out)
    write_report(out)
    assert "the epsilon of both" not in (folder / "report.html").read_text()
    assert read_run_folder(out).summary["started_from"]["delta"] == 1e-5


def test_other_labels_have_a_head_of_their_own(config, earlier, tmp_path):
    asked, folder = earlier()
    # In another order they are other classes.
    model = load_model(asked, LABELS)
    fresh = adapter_of(model).start()
    assert take_over(model, folder / "adapter") is False
    held = adapter_of(model).held()
    for segment in adapter_of(model).down.segments:
        same = np.array_equal(held[segment.slice], fresh[segment.slice])
        assert same == (segment.kind == "head"), segment.name


def test_another_task_takes_the_adapter_alone(tiny_checkpoint, tmp_path):
    """Where layers have other names, because the base has its own head there."""

    def make(task, **sections):
        return small_config(
            tiny_checkpoint("llama"), task=task, lora={"rank": 2, "method": "fedsvd"}, **sections
        )

    before = load_model(make("causal", data={"labels": None}))
    values = np.random.default_rng(1).normal(size=before.tensors.length).astype(np.float32)
    adapter_of(before).place(values)
    before.save_adapter(tmp_path / "adapter")
    after = load_model(make("classification"), LABELS)
    assert take_over(after, tmp_path / "adapter") is False
    assert np.array_equal(after.values(after.tensors.only("A", "B")), values)


@pytest.mark.parametrize(
    ("here", "word"),
    [
        ({"lora": {"rank": 3}}, "lora.rank: 2 there, 3 here"),
        ({"lora": {"rank": 2, "alpha": 4}}, "lora.alpha: 16.0 there, 4.0 here"),
        ({"lora": {"rank": 2, "last_layers": 1}}, "the adapted layers: 12 tensors there, 4 here"),
        ({"lora": {"rank": 2, "target_modules": ["key", "value"]}}, "there is no .*key"),
        ({"lora": {"rank": 0}}, "lora.rank: it trained adapters, and this run trains a head alone"),
        ({"lora": {"rank": 2, "method": "core"}}, "lora.method: a core has a basis of its own"),
        ({"lora": {"rank": 2, "method": "ffa"}}, "A: with lora.method = 'ffa' it is never sent"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_refused_and_named(config, earlier, tmp_path, here, word):
    _, folder = earlier()
    out = tmp_path / "later"
    with pytest.raises(ConfigError, match=word) as error:
        simulate(started(config, folder, **here), out, observers=[])
    assert error.value.remedy
    assert not (out / "run.toml").exists()


def test_another_base_model_is_refused(earlier, tiny_checkpoint):
    _, folder = earlier()
    other = load_model(small_config(tiny_checkpoint("roberta")), LABELS)
    with pytest.raises(ConfigError, match="differs from this run in the base model"):
        take_over(other, folder / "adapter")


def test_ffa_goes_on_where_the_seed_is_the_same(config, earlier, tmp_path):
    asked, folder = earlier("ffa")
    lora = asked.lora.model_dump(mode="json")
    simulate(started(config, folder, lora=lora), tmp_path / "same", observers=[])
    with pytest.raises(ConfigError, match="never sent"):
        simulate(started(config, folder, lora=lora, seed=3), tmp_path / "other", observers=[])


def test_what_is_no_finished_run_is_refused_before_anything_is_written(config, earlier, tmp_path):
    _, folder = earlier()
    (tmp_path / "empty").mkdir()
    unfinished = shutil.copytree(folder, tmp_path / "unfinished")
    (unfinished / "summary.json").unlink()
    for place, word in (
        (tmp_path / "nowhere", "there is no folder"),
        (tmp_path / "empty", "holds no adapter"),
        (unfinished, "is not finished"),
    ):
        with pytest.raises(ConfigError, match=word):
            simulate(started(config, place), tmp_path / "later", observers=[])
        assert not (tmp_path / "later" / "run.toml").exists()


def test_an_adapters_folder_alone_will_do(config, earlier, tmp_path):
    _, folder = earlier()
    alone = shutil.copytree(folder / "adapter", tmp_path / "alone")
    summary = simulate(started(config, alone), tmp_path / "later", observers=[])
    assert set(summary.started_from) == {"adapter", "head"}
    assert find_start(str(folder / "adapter")).about["run"] == "earlier"
    damaged = alone / "adapter_model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-3])
    with pytest.raises(FedllmError, match="damaged"):
        simulate(started(config, alone), tmp_path / "last", observers=[])


def test_the_whole_chain_is_carried_and_a_run_without_privacy_leaves_it_unbounded(
    config, earlier, tmp_path
):
    _, one = earlier(name="one")
    runs = {}
    for name, before in (("two", one), ("three", tmp_path / "two")):
        asked = config(
            name=name,
            model={"start": str(before)},
            # So little noise on figures of the sites that they are never lost in it.
            privacy={"epsilon": 40.0},
            evaluation={"every": 2, "epsilon": 30.0, "holdout": 0.25},
        )
        runs[name] = simulate(asked, tmp_path / name, observers=[])
    chain = ancestors(runs["three"].started_from)
    assert [link.run for link in chain] == ["two", "one"]
    assert [link.epsilon is None for link in chain] == [False, True]
    assert [link.held_out for link in chain] == [0.25, 0.0]
    assert runs["three"].started_from["run"] == "two"
    words = runs["three"].describe(tmp_path / "three")
    assert "goes back to one" in words and "the epsilon of both" not in words
    page = (tmp_path / "three" / "report.html").read_text()
    assert "two, one" in page
    assert "no epsilon is known" in page
    card = (tmp_path / "three" / "adapter" / "README.md").read_text()
    assert "`two, one`" in card and "bounded by no epsilon" in card
    # The first has seen what the third measures on.
    assert "may have trained on them" in page
    with pytest.raises(ConfigError, match="two, one") as error:
        compare_simulated(tmp_path / "three", divide, lambda _: None)
    assert "new records" in error.value.message
