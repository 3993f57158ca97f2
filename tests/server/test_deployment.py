"""Whole runs of a deployed federation: separate processes, TLS on loopback, kill -9."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.deployment import Deployment, wait_until
from support.federation import records, small_config, write_jsonl
from support.network import HUB, network
from support.ports import free_port

from fedllm.config import RunConfig
from fedllm.privacy.ledger.audit import verify_ledger
from fedllm.runs.summary import Summary
from fedllm_server.simulation import simulate

pytestmark = pytest.mark.slow


@pytest.fixture
def deployment(tiny_checkpoint, tmp_path) -> Iterator[Deployment]:
    made = Deployment(tmp_path, tiny_checkpoint("bert"))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def config(tiny_checkpoint, tmp_path) -> RunConfig:
    """A run without noise, for which every site is needed in every round.

    Each step is on all records: a kill may come in the middle of an attempt, and the next one
    draws another batch.
    """
    test = write_jsonl(tmp_path / "test.jsonl", records(30, seed=99))
    return small_config(
        tiny_checkpoint("bert"),
        data={"train": "unused", "test": str(test), "labels": None, "sites": 3},
        rounds={"count": 5, "min_sites": 3, "timeout_s": 600.0},
        training={
            "learning_rate": 0.02,
            "head_learning_rate": 0.05,
            "sampling_rate": 1.0,
            "batch_size": 30,
        },
    )


def simulated(config: RunConfig, deployment: Deployment) -> Summary:
    """Return the end of the same run in one process, from the same files."""
    rows = []
    for name in deployment.sites:
        for line in (deployment.folder / f"{name}.jsonl").read_text().splitlines():
            rows.append(json.dumps({**json.loads(line), "bank": name}))
    path = deployment.folder / "all.jsonl"
    path.write_text("\n".join(rows) + "\n")
    data = config.data.model_copy(update={"train": str(path), "site": "bank"})
    whole = config.model_copy(update={"data": data})
    return simulate(whole, deployment.folder / "simulated")


def ledger_of(deployment: Deployment, name: str):
    (account,) = verify_ledger(deployment.kit(name) / "state" / "ledger.sqlite").accounts
    return account


def children_of(deployment: Deployment) -> list[str]:
    """Return the command lines of all processes that work with this federation's kits."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if str(deployment.folder / "operator") in line:
                found.append(line)
    return found


def test_any_process_may_be_killed_and_the_model_is_that_of_the_simulator(deployment, config):
    """Site, authority, the run's own process and the coordinator: kill -9, one after the other."""
    for group, name in (("server", "coordinator"), ("client", "site-01")):
        place = f"key:file:{deployment.folder / name}.key"
        done = deployment.fedllm(group, "rekey", "--kit", str(deployment.kit(name)), "--to", place)
        assert done.returncode == 0, done.stderr
    deployment.start_all()
    assert deployment.submit(config, "--detach").returncode == 0

    def reached(number: int) -> bool:
        lines = deployment.rounds("small")
        return bool(lines) and lines[-1]["round"] >= number

    wait_until(lambda: reached(1), 600.0, "round 1")
    deployment.kill("site-01")
    deployment.start("site-01")
    wait_until(lambda: reached(2), 600.0, "round 2")
    deployment.kill("authority")
    deployment.start("authority")
    wait_until(lambda: reached(3), 600.0, "round 3")
    (runner,) = [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and is_runner(entry, deployment)
    ]
    os.kill(runner, signal.SIGKILL)
    wait_until(lambda: reached(4), 600.0, "round 4")
    deployment.kill("coordinator")
    wait_until(
        lambda: not any("fedllm_server.runner" in line for line in children_of(deployment)),
        60.0,
        "the run's process died with the coordinator",
    )
    deployment.start("coordinator")
    path = deployment.folder / "small.toml"
    kit = str(deployment.kit("coordinator"))
    done = deployment.fedllm("run", str(path), "--kit", kit, "--follow", "--json")
    assert done.returncode == 0, done.stderr + deployment.log("coordinator")
    summary = json.loads(done.stdout)
    assert summary["rounds"] == 5
    assert [line["round"] for line in deployment.rounds("small")] == [0, 1, 2, 3, 4, 5]
    # Another attempt takes the same records in another order, which rounds otherwise.
    loss = simulated(config, deployment).metrics["loss"]
    assert summary["metrics"]["loss"] == pytest.approx(loss, rel=1e-3)
    for name in deployment.sites:
        (run,) = ledger_of(deployment, name).runs
        assert run.committed + run.reserved_only >= 5
    assert not (deployment.run_folder("small") / "ledgers").exists()
    assert "<html" in (deployment.run_folder("small") / "report.html").read_text()
    log = deployment.fedllm("authority", "log", "--kit", str(deployment.kit("authority")))
    assert log.returncode == 0, log.stderr
    every_site_gets_the_model(deployment, summary["run_id"])
    checkpoints = list(deployment.run_folder("small").glob("checkpoints/*/*"))
    assert {path.name for path in checkpoints} == {"state.json", "state.sealed"}
    told = deployment.fedllm("client", "log", "--kit", str(deployment.kit("site-01")))
    rounds = [json.loads(line).get("round") for line in told.stdout.splitlines()]
    assert set(rounds) >= {3, 4, 5}
    assert not (deployment.kit("site-01") / "state" / "rounds.jsonl").exists()
    deployment.close()
    assert children_of(deployment) == []


def every_site_gets_the_model(deployment: Deployment, run: str) -> None:
    """Nothing before the coordinator releases it; then the same at each site, and of use there."""

    def said(*arguments: str) -> dict:
        done = deployment.fedllm(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    models = ("client", "models")
    kit = {name: ("--kit", str(deployment.kit(name))) for name in deployment.sites}
    assert said(*models, "list", *kit["site-00"])["releases"] == []
    released = said("server", "release", "small", "--kit", str(deployment.kit("coordinator")))
    assert released["run_id"] == run
    for name in deployment.sites:
        place = deployment.folder / "models" / name
        policy = ("--policy", str(deployment.folder / f"{name}.toml"))
        found = said(*models, "fetch", "small", *kit[name], *policy, "--out", str(place))
        assert (found["digest"], found["took_part"]) == (released["digest"], True)
        for path in (deployment.run_folder("small") / "adapter").iterdir():
            assert (place / "adapter" / path.name).read_bytes() == path.read_bytes()
    own = said("client", "personalise", str(place), *kit[name], *policy)
    assert Path(own["layer"]).exists()


def is_runner(entry: Path, deployment: Deployment) -> bool:
    try:
        line = (entry / "cmdline").read_bytes().decode()
    except OSError:
        return False
    return "fedllm_server.runner" in line and str(deployment.folder) in line


def test_a_private_run_goes_on_without_a_lost_site_and_takes_it_back(deployment, config):
    deployment.policy["non_private"] = False
    for name in deployment.sites:
        deployment.write_policy(name)
    rounds = config.rounds.model_copy(update={"count": 12, "min_sites": 2})
    privacy = config.privacy.model_copy(update={"epsilon": 6.0})
    private = config.model_copy(update={"rounds": rounds, "privacy": privacy})
    deployment.start_all()
    assert deployment.submit(private, "--detach").returncode == 0

    def last(sites: int) -> bool:
        lines = deployment.rounds("small")
        return len(lines) > 2 and lines[-1]["sites"] == sites

    wait_until(lambda: last(3), 600.0, "all three sites")
    deployment.kill("site-02")
    wait_until(lambda: last(2), 600.0, "two sites go on")
    deployment.start("site-02")
    wait_until(lambda: last(3), 600.0, "the third is back")
    path, kit = deployment.folder / "small.toml", str(deployment.kit("coordinator"))
    done = deployment.fedllm("run", str(path), "--kit", kit, "--follow", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["privacy"]["promised"] == 6.0
    for name in deployment.sites:
        found = ledger_of(deployment, name)
        assert 0 < found.spent.value <= 6.0
    lost = ledger_of(deployment, "site-02").runs[0]
    whole = ledger_of(deployment, "site-00").runs[0]
    assert whole.committed == 12
    assert lost.committed < 12


def test_a_party_is_started_once_and_stops_when_it_is_told_to(deployment):
    deployment.start("coordinator")
    wait_until(lambda: deployment.status()["nodes"], 600.0, "status")
    kit = str(deployment.kit("coordinator"))
    second = deployment.fedllm("server", "start", "--kit", kit)
    assert second.returncode == 2
    assert "already running" in second.stderr
    shown = deployment.fedllm("server", "status", "--kit", kit, "--json")
    assert json.loads(shown.stdout)["running"] is True
    deployment.start("site-00")
    deployment.wait_connected("site-00")
    site = deployment.kit("site-00")
    policy = str(deployment.folder / "site-00.toml")
    again = deployment.fedllm("client", "start", "--kit", str(site), "--policy", policy)
    assert again.returncode == 2
    process = deployment.processes.pop("site-00")
    process.terminate()
    assert process.wait(timeout=600) == 0
    process = deployment.processes.pop("coordinator")
    process.terminate()
    assert process.wait(timeout=600) == 0
    assert children_of(deployment) == []
    shown = deployment.fedllm("server", "status", "--kit", kit)
    assert shown.returncode == 1
    assert "NOT running" in shown.stdout


def test_a_policy_without_data_is_refused_at_the_start(deployment):
    policy = deployment.folder / "empty.toml"
    policy.write_text("[budget]\nepsilon = 1\n")
    kit = str(deployment.kit("site-00"))
    done = deployment.fedllm("client", "start", "--kit", kit, "--policy", str(policy))
    assert done.returncode == 2
    assert "no section [model]" in done.stderr


def test_runs_are_handed_over_cancelled_and_refused_with_words(deployment, config):
    kit = str(deployment.kit("coordinator"))
    waiting = deployment.submit(config, "--detach")
    assert waiting.returncode == 0
    assert "no coordinator is running" in waiting.stderr
    twice = deployment.submit(config)
    assert twice.returncode == 2
    assert "--follow" in twice.stderr
    path = str(deployment.folder / "small.toml")
    assert deployment.fedllm("run", path, "--kit", kit, "--cancel").returncode == 0
    ended = deployment.fedllm("run", path, "--kit", kit, "--follow")
    assert ended.returncode == 1
    assert "cancelled" in ended.stderr
    assert deployment.submit(config).returncode == 2
    rounds = config.rounds.model_copy(update={"timeout_s": 3.0})
    short = config.model_copy(update={"rounds": rounds, "name": "short"})
    deployment.start("coordinator")
    wait_until((deployment.kit("coordinator") / "state" / "status.json").exists)
    lonely = deployment.submit(short)
    assert lonely.returncode == 4
    assert "0 sites are connected, 3 are needed" in lonely.stderr
    assert "not connected: " in lonely.stderr
    assert "the run needs 3 sites" in lonely.stderr
    # Who is awaited, and what to look at, before it gives up.
    assert "waiting: 0 sites are connected, 3 are needed; not there: site-00, " in lonely.stderr
    assert "fedllm client check" in lonely.stderr


def test_a_site_that_is_cut_off_in_a_round_comes_back(tiny_checkpoint, tmp_path, config):
    """Five machines with addresses of their own; one of them loses its cable for a while."""
    names = ("authority", "site-00", "site-01", "site-02")
    with network(names) as net:
        port = free_port()
        deployment = Deployment(
            tmp_path,
            tiny_checkpoint("bert"),
            port=port,
            federation={"coordinator": {"hosts": [HUB], "port": port}},
            inside=net.inside,
        )
        rounds = config.rounds.model_copy(update={"count": 500, "min_sites": 2})
        long = config.model_copy(update={"rounds": rounds})

        def last(sites: int) -> bool:
            lines = deployment.rounds("small")
            return len(lines) > 1 and lines[-1]["sites"] == sites

        try:
            deployment.start_all()
            assert deployment.submit(long, "--detach").returncode == 0
            wait_until(lambda: last(3), 600.0, "all three sites")
            net.cut("site-02")
            wait_until(lambda: last(2), 600.0, "two sites go on")
            net.mend("site-02")
            wait_until(lambda: last(3), 600.0, "the third is back")
            path, kit = deployment.folder / "small.toml", str(deployment.kit("coordinator"))
            done = deployment.fedllm("run", str(path), "--kit", kit, "--cancel")
            assert done.returncode == 0
            for name in deployment.sites:
                assert ledger_of(deployment, name).runs[0].committed > 1
        finally:
            deployment.close()
