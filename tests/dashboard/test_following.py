"""What a run's folder says, while it is written and afterwards."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from support.dashboard import Growing, add_line, sign_heads
from support.run_folder import SITES, rounds, write_run

from fedllm.dashboard.drawings import charts_of
from fedllm.dashboard.following import Follower
from fedllm.dashboard.measures import spent_of
from fedllm.dashboard.sites import sites_of
from fedllm.dashboard.tables import privacy_of, rounds_table, took
from fedllm.dashboard.wording import words_of
from fedllm.runs import names
from fedllm.runs.job import Job, write_job


@pytest.fixture
def growing(tmp_path):
    run = Growing(tmp_path / "run")
    yield run
    run.die()


def standings(seen):
    return {site.name: site.standing for site in sites_of(seen)}


def test_a_run_is_followed_from_its_start_to_its_end(growing):
    follower = Follower(growing.folder)
    first = follower.look()
    assert (first.state, first.done, first.total, first.sites) == ("running", 0, 5, 4)
    assert follower.look() is first
    growing.round()
    growing.round()
    growing.answered(2, "Northgate", "Riverside")
    seen = follower.look()
    assert seen.done == 1
    assert seen.under.in_sum == {"Northgate", "Riverside"}
    assert standings(seen) == {
        "Northgate": "in",
        "Riverside": "in",
        "Stonefield": "waiting",
        "Eastbrook": "waiting",
    }
    words = words_of(seen)
    assert words.percent == 20
    # Four rounds of 17 seconds each.
    assert words.left == "about 68 s left after round 1"
    assert words.under == "round 2, training: 2 of 4 have answered"
    growing.die()
    assert follower.look().state == "stopped"
    write_run(growing.folder)
    done = follower.look()
    assert (done.state, done.over, done.done) == ("finished", True, 5)
    assert words_of(done).left == ""


def test_what_is_half_written_is_not_shown_and_not_complained_of(growing):
    growing.round()
    report = rounds()[1]
    with (growing.folder / names.METRICS).open("a") as stream:
        stream.write(json.dumps(report)[:20])
    follower = Follower(growing.folder)
    seen = follower.look()
    assert seen.done == 0
    assert len(seen.reports) == 1
    assert not seen.problems
    with (growing.folder / names.METRICS).open("a") as stream:
        stream.write(json.dumps(report)[20:] + "\n")
    assert follower.look().done == 1


def test_a_damaged_line_costs_that_line_and_is_named(growing):
    growing.round()
    with (growing.folder / names.METRICS).open("a") as stream:
        stream.write('{"round": "x"}\nnothing\n')
    growing.round()
    seen = Follower(growing.folder).look()
    assert [report.round for report in seen.reports] == [0, 1]
    assert any("left out" in one for one in seen.problems)


def test_a_run_that_went_back_is_shown_as_it_is_now(growing):
    follower = Follower(growing.folder)
    for _ in range(4):
        growing.round()
    assert follower.look().done == 3
    kept = (growing.folder / names.METRICS).read_text().splitlines(keepends=True)[:2]
    (growing.folder / "new").write_text("".join(kept))
    (growing.folder / "new").rename(growing.folder / names.METRICS)
    assert follower.look().done == 1


def test_a_folder_of_another_version_is_shown_as_far_as_it_is_known(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / names.RUN_TOML).write_text('name = "old"\n[unheard]\nof = 1\n')
    told = json.loads((folder / names.SUMMARY).read_text())
    for key in ("privacy", "versions", "model"):
        del told[key]
    (folder / names.SUMMARY).write_text(json.dumps(told))
    seen = Follower(folder).look()
    assert seen.config is None
    assert seen.state == "finished"
    assert seen.done == 5
    assert any(names.RUN_TOML in one for one in seen.problems)
    assert charts_of(seen)
    # It is mended, and no longer complained of.
    follower = Follower(folder)
    follower.look()
    write_run(folder)
    assert not follower.look().problems


@pytest.mark.parametrize("file", [names.RUN_TOML, names.SUMMARY, names.ROSTER, names.HEADS])
def test_a_damaged_file_takes_nothing_else_away(tmp_path, file):
    folder = write_run(tmp_path / "run")
    (folder / file).write_bytes(b"\xff\x00{")
    seen = Follower(folder).look()
    assert seen.done == 5
    assert sites_of(seen)


def test_who_was_left_out_and_who_did_not_answer_are_told_apart(growing):
    growing.round()
    reasons = {"Northgate": "'Northgate' did not answer", "Riverside": "the budget is spent"}
    growing.round({"dropped": reasons})
    found = {site.name: site for site in sites_of(Follower(growing.folder).look())}
    assert found["Northgate"].standing == "late"
    assert found["Riverside"].standing == "left out"
    assert "the budget is spent" in found["Riverside"].words
    assert (found["Riverside"].rounds, found["Riverside"].left_out) == (0, 1)
    assert (found["Eastbrook"].rounds, found["Eastbrook"].left_out) == (1, 0)


def test_a_signature_that_does_not_hold_is_told(tmp_path):
    folder = write_run(tmp_path / "run")
    sign_heads(folder, tmp_path / "keys", forged="Riverside")
    heads = Follower(folder).look().heads
    assert heads.count == len(SITES)
    assert {name: one.check for name, one in heads.newest.items()} == {
        name: "does not hold" if name == "Riverside" else "holds" for name in SITES
    }
    (folder / names.ROSTER).unlink()
    assert {one.check for one in Follower(folder).look().heads.newest.values()} == {"no key"}


def test_a_job_of_a_coordinator_has_its_own_states(tmp_path):
    state = tmp_path / "kit" / "state"
    run = Growing(state / "runs" / "ward")
    follower = Follower(run.folder)
    write_job(run.folder, Job("ward", "running", "2026-01-01"))
    assert follower.look().state == "running"
    run.die()
    # Its process died, and is started again.
    assert follower.look().state == "queued"
    assert not follower.look().over
    error = {"kind": "PeerError", "message": "too few", "remedy": "wait"}
    write_job(run.folder, Job("ward", "failed", "2026-01-01", 1, error))
    seen = follower.look()
    assert seen.state == "failed"
    assert words_of(seen).error == "too few"
    write_job(run.folder, Job("ward", "queued", "2026-01-01"))
    assert follower.look().state == "queued"


def test_who_is_connected_is_told_while_the_coordinator_runs(tmp_path):
    state = tmp_path / "kit" / "state"
    run = Growing(state / "runs" / "ward")
    run.round({"dropped": {"Northgate": ""}})
    nodes = [{"name": "Northgate", "online": True}, {"name": "Riverside", "online": False}]
    (state / "status.json").write_text(json.dumps({"nodes": nodes}))
    follower = Follower(run.folder)
    assert follower.look().connected == {}
    coordinator = Growing(tmp_path / "other")
    (state / "server.lock").hardlink_to(coordinator.folder / names.LOCK)
    assert follower.look().connected == {"Northgate": True, "Riverside": False}
    for one in (run, coordinator):
        one.die()


def test_an_epsilon_without_a_bound_is_unlimited_and_not_left_out(tmp_path):
    lines = rounds()
    lines[-1]["epsilon"]["Northgate"] = None
    folder = write_run(tmp_path / "run", lines=lines)
    seen = Follower(folder).look()
    assert spent_of(seen) == float("inf")
    assert dict(privacy_of(seen))["epsilon spent so far, the most at a site"] == "unlimited"
    drawn = [one for one in charts_of(seen) if one.key == "epsilon"]
    assert all("most" not in name for one in drawn for name, _ in one.legend)


def test_pretraining_and_alignments_are_named_as_what_they_are(tmp_path):
    for name, file in (("base", names.INPUTS), ("aligned", names.ALIGN_TOML)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / file).write_text("{}")
        (folder / names.RUN_TOML).write_text("")
    for step in (10, 20):
        line = {"step": step, "tokens": 1, "loss": 3.0 - step / 10}
        add_line(tmp_path / "base" / names.METRICS, line)
    seen = Follower(tmp_path / "base").look()
    assert (seen.kind, len(charts_of(seen))) == ("pretraining", 1)
    assert words_of(seen).done == 20
    assert not seen.problems
    for step in range(3):
        line = {"round": step, "metrics": {"reward": 1.0 + step}, "seconds": {"total": 20.0 * step}}
        add_line(tmp_path / "aligned" / names.METRICS, line)
    aligned = Follower(tmp_path / "aligned").look()
    assert aligned.kind == "alignment"
    assert words_of(aligned).unit == "steps"
    # Each line has the seconds from the beginning.
    assert took(aligned) == "40 s"
    assert rounds_table(aligned).headings == ("step", "reward")
    assert rounds_table(aligned).rows[0] == ("2", "3")
    assert asdict(words_of(seen))["unit"] == "steps"
