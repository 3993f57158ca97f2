"""A site's records: read once when it starts, and nothing refused because of them afterwards."""

from __future__ import annotations

import json

import pytest
from support.federation import LABELS, build, records, small_config

from fedllm.config import AllowSection, BudgetSection, SitePolicy
from fedllm.data.columns import MissingColumnError
from fedllm.data.records import Record
from fedllm.errors import DataError, RefusedError
from fedllm.federation.protocol.statements import make_member
from fedllm.federation.site.data import SiteData
from fedllm.identity.keys import Identity
from fedllm.mechanisms import mechanism_of
from fedllm.privacy.ledger.ledger import Ledger
from fedllm.tasks.cache import ModelCache

ANNE = Identity.generate("anne")


def test_a_site_offers_the_tasks_whose_columns_it_has():
    asked = []

    def read(task):
        asked.append(task)
        if task == "instruction":
            raise MissingColumnError("there is no column 'prompt'")
        return records(3)

    data = SiteData(read, ANNE)
    tasks = ("instruction", "classification", "causal")
    assert data.read_all(tasks) == ("classification", "causal")
    assert [len(data.records(task)) for task in ("causal", "classification")] == [3, 3]
    # By now the source may have the columns, and an error in it would be about a record.
    with pytest.raises(RefusedError, match="no columns for the task 'instruction'"):
        data.records("instruction")
    assert asked == list(tasks), "nothing is read twice"
    with pytest.raises(MissingColumnError, match="prompt"):
        SiteData(read, ANNE).read_all(("instruction",))


def test_a_row_that_cannot_be_used_keeps_a_site_from_starting():
    def read(task):
        raise DataError("1 row cannot be used")

    with pytest.raises(DataError):
        SiteData(read, ANNE).read_all(("classification", "causal"))


def test_records_are_encoded_once_for_a_model_and_a_part_that_is_held_out(tiny_checkpoint):
    config = small_config(tiny_checkpoint("bert"))
    data = SiteData(lambda task: records(20), ANNE)
    data.read_all(("classification",))
    models = ModelCache()
    model = models.get(config, LABELS)
    first = data.datasets(config, model)
    assert data.datasets(config, model) is first
    held_out = small_config(tiny_checkpoint("bert"), evaluation={"every": 1, "holdout": 0.25})
    assert data.datasets(held_out, model) is not first
    assert data.datasets(config, models.get(config, LABELS[:2])) is not first


@pytest.mark.parametrize(
    ("unit", "evaluation", "expected"),
    [
        (lambda i: None, {}, 40),
        (lambda i: f"p{i // 4}", {}, 10),
        (lambda i: None, {"every": 1, "holdout": 0.25}, 30),
        (lambda i: "p", {"every": 1, "holdout": 0.9}, 1),
    ],
)
def test_units_are_counted_not_looked_at(tiny_checkpoint, unit, evaluation, expected):
    config = small_config(tiny_checkpoint("bert"), evaluation=evaluation)
    data = SiteData(lambda task: records(40, unit=unit), ANNE)
    assert data.units(config) == expected
    # Which are held out is secret, and does not change what is said.
    assert (
        SiteData(lambda task: records(40, unit=unit), Identity.generate("x")).units(config)
        == expected
    )


def test_a_run_that_protects_persons_needs_records_that_name_them(tiny_checkpoint, tmp_path):
    """The coordinator's word is not enough: its column of persons is not the site's."""
    config = small_config(
        tiny_checkpoint("bert"), privacy={"epsilon": 8.0}, data={"unit": "patient"}
    )
    policy = SitePolicy(
        budget=BudgetSection(epsilon=8.0), allow=AllowSection(unit="person", min_cohort=1)
    )
    federation = build(tmp_path, config, policy=policy)
    with pytest.raises(RefusedError, match="this site's records name none"):
        federation.round()
    assert [kind for kind, _ in federation.heard] == ["join"] * 3


def test_an_order_for_persons_is_refused_as_the_question_was(tiny_checkpoint, tmp_path):
    data = {f"site-{i}": records(20, seed=i, unit=lambda j: f"p{j}") for i in range(3)}
    config = small_config(
        tiny_checkpoint("bert"), privacy={"epsilon": 8.0}, data={"unit": "patient"}
    )
    federation = build(tmp_path, config, data)
    nameless = [Record(r.values, None, None, r.origin) for r in data["site-0"]]

    def forget(kind, name, message):
        if kind == "train request" and name == "site-0":
            federation.sites[name]._data._records["classification"] = nameless
        return message

    federation.tamper = forget
    outcome = federation.round()
    assert "name none" in outcome.dropped["site-0"]


def events(federation, name="site-0"):
    ledger = Ledger.open(federation.folder / f"{name}.sqlite", name, federation.identities[name])
    return ledger.events_of_run("run-1")


def test_a_file_that_changed_between_two_rounds_is_charged_by_what_was_announced(
    tiny_checkpoint, tmp_path
):
    config = small_config(tiny_checkpoint("bert"), privacy={"epsilon": 8.0})
    federation = build(tmp_path, config)
    federation.round(1, 1)
    site = federation.sites["site-0"]

    # The service was started again, with more than twice the records; nobody joined again.
    site._data = SiteData(lambda task: records(90, seed=5), site._identity)
    joined = []

    def listen(kind, name, message):
        if kind == "join" and name == "site-0":
            joined.append(message)
        return message

    federation.tamper = listen
    federation.round(2, 2)
    first, second = events(federation)
    assert [answer.header.member.units for answer in joined] == [80]
    mechanism = mechanism_of(config)
    assert first.sampling_rate == mechanism.sampling_rate(40)
    assert second.sampling_rate == mechanism.sampling_rate(80)


def test_an_order_under_what_was_announced_before_is_charged_by_it(tiny_checkpoint, tmp_path):
    config = small_config(tiny_checkpoint("bert"), privacy={"epsilon": 8.0})
    federation = build(tmp_path, config)
    orders = []

    def catch(kind, name, message):
        if kind == "train request" and name == "site-0":
            orders.append(message)
            site = federation.sites[name]
            site._data = SiteData(lambda task: records(90, seed=5), site._identity)
        return message

    federation.tamper = catch
    federation.round(1, 1)
    (event,) = events(federation)
    assert event.sampling_rate == mechanism_of(config).sampling_rate(40)


def test_what_is_left_out_is_told_once_in_the_sites_own_log(tiny_checkpoint, tmp_path):
    rows = [
        *records(20),
        Record({"text": "lost card", "label": "foreign"}, None, None, "own.csv:22"),
    ]
    data = {"site-0": rows, "site-1": records(20, seed=1)}
    config = small_config(
        tiny_checkpoint("bert"), rounds={"count": 2, "min_sites": 2}, data={"sites": 2}
    )
    federation = build(tmp_path, config, data)
    federation.round(1, 1)
    federation.round(2, 2)
    lines = [json.loads(line) for line in (tmp_path / "site-0.log").read_text().splitlines()]
    (told,) = [line for line in lines if "left_out" in line]
    assert told["left_out"] == (
        "1 row left out of training and evaluation:\n"
        f"  own.csv:22: its label is not one of the {len(LABELS)} public labels {LABELS}"
    )


def test_how_much_is_cut_off_is_told_once_in_the_sites_own_log(tiny_checkpoint, tmp_path):
    long = [Record({"text": "card " * 30, "label": LABELS[0]}, None, None, "own.csv:22")]
    data = {"site-0": records(20) + long, "site-1": records(20, seed=1)}
    config = small_config(
        tiny_checkpoint("bert"),
        rounds={"count": 2, "min_sites": 2},
        data={"sites": 2},
        model={"max_length": 24},
    )
    federation = build(tmp_path, config, data)
    federation.round(1, 1)
    federation.round(2, 2)
    logs = [(tmp_path / f"site-{n}.log").read_text().splitlines() for n in (0, 1)]
    (told,) = [line for line in map(json.loads, logs[0]) if "cut_off" in line]
    assert told["cut_off"].startswith("1 of 21 records are longer than model.max_length = 24")
    assert not [line for line in map(json.loads, logs[1]) if "cut_off" in line]


def test_an_entry_of_another_kind_of_run_is_refused_before_anything_is_charged(
    tiny_checkpoint, tmp_path
):
    """With no announced size nothing could be divided by it; with one, noise would follow it."""
    config = small_config(tiny_checkpoint("bert"), privacy={"epsilon": 8.0})
    federation = build(tmp_path, config)
    without = make_member(
        federation.identities["site-0"], federation.ledger_id("site-0"), "run-1", 0
    )

    def swap(kind, name, message):
        if kind == "join" and name == "site-0":
            header = message.header.model_copy(update={"member": without})
            return type(message)(header)
        return message

    federation.tamper = swap
    outcome = federation.round()
    assert "another kind of run" in outcome.dropped["site-0"]
    assert events(federation) == []


def test_a_site_that_starts_says_which_tasks_it_can_do(tiny_checkpoint, tmp_path):
    site = build(tmp_path, small_config(tiny_checkpoint("bert"))).sites["site-0"]
    assert site.start() == site._data.read_all(site._policy.allow.tasks)
    assert "classification" in site.start()
