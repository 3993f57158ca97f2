"""The process that carries a deployment's run, here in this one: kits, roster, run folder."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.federation import records, small_config, write_jsonl
from support.kits import make_federation

from fedllm.config import AllowSection, BudgetSection, SitePolicy
from fedllm.errors import BudgetError, ConfigError
from fedllm.federation.authority.authority import Authority
from fedllm.federation.site.files import SiteFiles
from fedllm.federation.site.site import Site
from fedllm.federation.transport.engines import LocalGrid, task_identity
from fedllm.federation.transport.flower import SERVER_NODE
from fedllm.federation.transport.superlink import Ticket
from fedllm.identity.kits import read_kit
from fedllm.runs import names
from fedllm.runs.checkpoints import load_checkpoint
from fedllm.runs.folder import locked, write_config
from fedllm.tasks.cache import ModelCache
from fedllm_client.app import make_authority_app, make_client_app
from fedllm_server import runner

TICKET = Ticket("127.0.0.1:1", 1, 2, "token")
SITES = ("anne", "bob")


class KitGrid(LocalGrid):
    """The parties of a federation's kits in this process, known by their node keys."""

    def __init__(self, kits: Path, checkpoint: Path) -> None:
        roster = read_kit(kits / "coordinator", "coordinator").roster
        models, apps = ModelCache(), []
        self.keys = [roster.node_keys[name] for name in (*SITES, "authority")]
        for number, name in enumerate(SITES):
            kit = read_kit(kits / name, "site")
            site = Site(
                identity=kit.identity,
                roster=kit.roster,
                policy=SitePolicy(
                    budget=BudgetSection(epsilon=100.0),
                    allow=AllowSection(min_cohort=2, non_private=True),
                ),
                files=SiteFiles.of_kit(kit.folder),
                model_path=str(checkpoint),
                records=lambda task, seed=number: records(30, seed=seed),
                models=models,
            )
            apps.append(make_client_app(lambda context, found=site: found))
        kit = read_kit(kits / "authority", "authority")
        apps.append(make_authority_app(Authority(kit.identity, kit.roster, 2)))
        self.asked = 0

        def app(message, context):
            self.asked += 1
            return apps[message.metadata.dst_node_id - 100](message, context)

        super().__init__(app, len(apps))

    def get_nodes(self):
        return [
            SimpleNamespace(node_id=100 + number, public_key=key, last_activated_at="monday")
            for number, key in enumerate(self.keys)
        ]


@pytest.fixture
def place(tiny_checkpoint, tmp_path, monkeypatch):
    make_federation(tmp_path / "operator", sites=list(SITES))
    kits, checkpoint = tmp_path / "operator" / "kits", tiny_checkpoint("bert")
    test = write_jsonl(tmp_path / "test.jsonl", records(12, seed=9))
    config = small_config(
        checkpoint,
        data={"train": "unused", "test": str(test), "sites": 2},
        rounds={"count": 2, "min_sites": 2},
    )
    folder = tmp_path / "run"
    folder.mkdir()
    write_config(folder, config)
    grid, said = KitGrid(kits, checkpoint), []

    @contextlib.contextmanager
    def grid_of(ticket):
        assert ticket is TICKET
        with task_identity(1, SERVER_NODE):
            yield grid

    monkeypatch.setattr(runner, "grid_of", grid_of)
    monkeypatch.setattr(runner, "say", said.append)
    kit = read_kit(kits / "coordinator", "coordinator")
    return SimpleNamespace(kit=kit, folder=folder, config=config, grid=grid, said=said)


def test_a_run_is_carried_to_its_end_and_then_not_again(place):
    runner.carry(place.kit, place.folder, TICKET)
    summary = json.loads((place.folder / names.SUMMARY).read_text())
    assert (summary["rounds"], summary["site_names"]) == (2, list(SITES))
    assert not summary.get("simulated")
    lines = (place.folder / names.METRICS).read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [0, 1, 2]
    assert any("WARNING" in text for text in place.said), "it is not private"
    assert (place.folder / names.PROGRESS).exists()
    asked = place.grid.asked
    assert asked > 0
    runner.carry(place.kit, place.folder, TICKET)
    assert place.grid.asked == asked


def test_what_a_run_leaves_is_its_last_adapter_also_where_nothing_was_measured(place):
    data = place.config.data.model_copy(update={"test": None})
    # The process keeps its base model, with the adapter of the run before this one.
    changes = {"data": data, "seed": place.config.seed + 7}
    write_config(place.folder, place.config.model_copy(update=changes))
    runner.carry(place.kit, place.folder, TICKET)
    summary = json.loads((place.folder / names.SUMMARY).read_text())
    last = load_checkpoint(place.folder / names.CHECKPOINTS)
    assert last.round == 2
    assert summary["adapter_sha256"] == hashlib.sha256(last.adapter.tobytes()).hexdigest()


@pytest.mark.parametrize(
    ("asked", "processors", "used"), [(3, 5, 3), (None, 5, 5), (None, None, 1)]
)
def test_a_run_uses_the_threads_it_asks_for_or_all(place, monkeypatch, asked, processors, used):
    engine = place.config.engine.model_copy(update={"threads": asked})
    write_config(place.folder, place.config.model_copy(update={"engine": engine}))
    set_to: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    monkeypatch.setattr(runner.os, "cpu_count", lambda: processors)
    with locked(place.folder, "--kit"), pytest.raises(ConfigError):
        runner.carry(place.kit, place.folder, TICKET)
    assert set_to == [used]


def test_a_run_goes_on_from_its_newest_checkpoint(place):
    write_config(place.folder, place.config)
    train = []
    whole = place.grid._app

    def stops(message, context):
        if message.metadata.message_type == "train.round":
            train.append(message.metadata.dst_node_id)
            if len(train) == 3:
                raise KeyboardInterrupt
        return whole(message, context)

    place.grid._app = stops
    with pytest.raises(KeyboardInterrupt):
        runner.carry(place.kit, place.folder, TICKET)
    assert not (place.folder / names.SUMMARY).exists()
    runner.carry(place.kit, place.folder, TICKET)
    assert train == [100, 101, 100, 100, 101]
    assert json.loads((place.folder / names.SUMMARY).read_text())["site_names"] == list(SITES)


def test_a_run_of_other_settings_or_other_public_records_is_not_gone_on_with(place, tmp_path):
    runner.carry(place.kit, place.folder, TICKET)
    (place.folder / names.SUMMARY).unlink()
    other = place.config.model_copy(update={"seed": place.config.seed + 1})
    write_config(place.folder, other)
    with pytest.raises(ConfigError):
        runner.carry(place.kit, place.folder, TICKET)
    write_config(place.folder, place.config)
    state = place.folder / names.CHECKPOINTS / "round-00002" / "state.json"
    whole = state.read_text()
    state.write_text(json.dumps(json.loads(whole) | {"model": "0" * 64}))
    with pytest.raises(ConfigError, match=r"another base model: its fingerprint was 0{16},"):
        runner.carry(place.kit, place.folder, TICKET)
    state.write_text(whole)
    more = place.config.rounds.model_copy(update={"count": 3})
    write_jsonl(tmp_path / "test.jsonl", records(11, seed=8))
    write_config(place.folder, place.config.model_copy(update={"rounds": more}))
    with pytest.raises(ConfigError):
        runner.carry(place.kit, place.folder, TICKET)


def test_two_processes_do_not_carry_one_run(place):
    with locked(place.folder, "--kit"), pytest.raises(ConfigError, match="another process"):
        runner.carry(place.kit, place.folder, TICKET)
    assert place.grid.asked == 0


@pytest.fixture
def called(place, monkeypatch):
    ticket = json.dumps(
        {"address": TICKET.address, "run_id": 1, "task_id": 2, "token": TICKET.token}
    )
    monkeypatch.setattr(sys, "argv", ["runner", "4711", str(place.kit.folder), str(place.folder)])
    monkeypatch.setattr(sys, "stdin", io.StringIO(ticket))
    done: list = []
    monkeypatch.setattr(runner, "keep_memory_private", lambda: done.append("private"))
    monkeypatch.setattr(runner, "die_with_parent", done.append)
    return done


def outcome(place) -> dict:
    return json.loads((place.folder / names.OUTCOME).read_text())


def test_the_process_is_told_parent_kit_folder_and_ticket(place, called, monkeypatch):
    def carry(kit, folder, ticket):
        called.append((kit.role, folder, ticket))

    monkeypatch.setattr(runner, "carry", carry)
    runner.main()
    assert called == ["private", 4711, ("coordinator", place.folder, TICKET)]
    assert outcome(place)["error"] is None


def test_why_a_run_failed_is_left_for_the_coordinator(place, called, monkeypatch):
    def fail(*_):
        raise BudgetError("too much", "ask for less")

    monkeypatch.setattr(runner, "carry", fail)
    with pytest.raises(SystemExit) as ended:
        runner.main()
    assert ended.value.code == BudgetError("x").exit_code != 0
    error = outcome(place)["error"]
    assert (error["message"], error["remedy"]) == ("too much", "ask for less")
