"""What the loop of rounds writes down of each: how long it took, and what was cut off."""

from __future__ import annotations

import dataclasses
import itertools
from types import SimpleNamespace

from support.federation import Federation, build, small_config

from fedllm.federation.coordinator import answers, rounds
from fedllm.privacy.ledger.ledger import Ledger
from fedllm.runs import names
from fedllm.runs.checkpoints import load_checkpoint
from fedllm.runs.metrics import read_reports
from fedllm.runs.observer import Observer
from fedllm_server import loop
from fedllm_server.loop import RoundLoop, Workplace
from fedllm_server.starting import starting_state


def ledger(federation: Federation, name: str) -> Ledger:
    return Ledger.open(federation.folder / f"{name}.sqlite", name, federation.identities[name])


def test_the_parts_of_a_round_are_timed_and_so_is_the_whole(tiny_checkpoint, tmp_path, monkeypatch):
    config = small_config(tiny_checkpoint("bert"), rounds={"count": 2})
    (tmp_path / "sites").mkdir()
    (tmp_path / "run").mkdir()
    federation = build(tmp_path / "sites", config)
    place = Workplace(
        tmp_path / "run",
        federation.model(),
        None,
        federation.roster,
        Observer(),
        lambda run, number: ({"train": 5.0}, {}),
    )
    clock = SimpleNamespace(perf_counter=itertools.count(1000.0).__next__)
    for module in (answers, rounds, loop):
        monkeypatch.setattr(module, "time", clock)
    made = RoundLoop(config, place, federation.terms, federation, federation.authority)
    made.run(dataclasses.replace(starting_state(config, place.model, None), run="run-1"))
    before, *found = read_reports(tmp_path / "run" / names.METRICS)
    assert before.seconds == {}
    # Of three answers each; nine looks until a round is done, and three after it.
    assert [report.seconds for report in found] == [
        {"train": 5.0, "aggregate": 3.0, "decrypt": 1.0, "evaluate": 1.0, "total": 12.0}
    ] * 2


def test_what_sites_were_charged_is_on_disk_before_anything_of_a_round_is_kept(
    tiny_checkpoint, tmp_path
):
    """Or a loss of power would leave a model that no ledger tells of."""
    asked = {"every": 2, "holdout": 0.3}
    config = small_config(tiny_checkpoint("bert"), rounds={"count": 2}, evaluation=asked)
    (tmp_path / "sites").mkdir()
    out = tmp_path / "run"
    out.mkdir()
    federation, kept = build(tmp_path / "sites", config), []

    def sync() -> None:
        heads = out / names.HEADS
        lines = heads.read_text().splitlines() if heads.exists() else []
        charged = min(ledger(federation, name).head().sequence for name in federation.sites)
        state = load_checkpoint(out / names.CHECKPOINTS)
        judged = bool(state.report and state.report.site_metrics)
        kept.append((len(lines) // len(federation.sites), state.round, judged, charged))

    place = Workplace(
        out,
        federation.model(),
        None,
        federation.roster,
        Observer(),
        lambda run, number: ({}, {}),
        sync_sites=sync,
    )
    made = RoundLoop(config, place, federation.terms, federation, federation.authority)
    made.run(dataclasses.replace(starting_state(config, place.model, None), run="run-1"))
    # Two rounds and an evaluation after them: reserved, settled on and committed each.
    assert kept == [(0, 0, False, 4), (1, 1, False, 7), (2, 2, False, 10)]


def test_an_evaluation_at_the_sites_that_was_cut_off_is_told_and_not_repeated(
    tiny_checkpoint, tmp_path
):
    """Each is charged once, and after the last round nobody joins."""
    asked = {"every": 2, "holdout": 0.3}
    config = small_config(tiny_checkpoint("bert"), rounds={"count": 2}, evaluation=asked)
    (tmp_path / "sites").mkdir()
    (tmp_path / "run").mkdir()
    federation, said = build(tmp_path / "sites", config), []

    class Heard(Observer):
        def note(self, text: str) -> None:
            said.append(text)

    model, out = federation.model(), tmp_path / "run"
    place = Workplace(out, model, None, federation.roster, Heard(), lambda run, number: ({}, {}))

    def loop_of():
        return RoundLoop(config, place, federation.terms, federation, federation.authority)

    state = dataclasses.replace(starting_state(config, model, None), run="run-1")
    done = loop_of().run(state)
    lines = (out / names.METRICS).read_text().splitlines(keepends=True)
    assert read_reports(out / names.METRICS)[-1].site_metrics
    (out / names.METRICS).write_text("".join(lines[:-1]))
    report = done.report.model_copy(update={"site_metrics": None})
    heard = len(federation.heard)
    loop_of().run(dataclasses.replace(done, report=report))
    assert said[-1] == "the evaluation at the sites after round 2 was cut off and is not repeated"
    assert read_reports(out / names.METRICS)[-1].site_metrics is None
    assert len(federation.heard) == heard
