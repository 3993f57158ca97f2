"""What a run folder that somebody else made does to those who look at it on the dashboard."""

from __future__ import annotations

import json
import os
import threading

import pytest
from starlette.testclient import TestClient
from support.dashboard import Clock
from support.run_folder import write_run

from fedllm.dashboard.application import Dashboard
from fedllm.dashboard.following import DOWNLOADS, Follower
from fedllm.dashboard.pages import run_sections
from fedllm.dashboard.watching import Runs
from fedllm.errors import ConfigError
from fedllm.runs import names

READ = (names.RUN_TOML, names.METRICS, names.SUMMARY, names.PROGRESS, names.HEADS, names.JOB)


def client(folder):
    app = Dashboard(Runs([folder], Clock()), lambda line: None)
    return TestClient(app, base_url="http://127.0.0.1:8350", raise_server_exceptions=False)


def in_time(work):
    """Return what some work gives; None if it waits for something."""
    found = []
    thread = threading.Thread(target=lambda: found.append(work()), daemon=True)
    thread.start()
    thread.join(20)
    return found[0] if found else None


def free(pipe):
    """Let whoever waits for a pipe go."""
    try:
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return


@pytest.mark.parametrize("name", [*READ, names.ROSTER])
def test_a_pipe_in_the_place_of_a_file_keeps_nobody_waiting(tmp_path, name):
    write_run(tmp_path / "a")
    pipe = tmp_path / "a" / name
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe)
    thread_waits = threading.Timer(5, free, [pipe])
    thread_waits.start()
    done = threading.Event()
    found = in_time(lambda: (Follower(tmp_path / "a").look(), done.set()))
    early = thread_waits.is_alive()
    thread_waits.cancel()
    assert found is not None and early, "it waited for the pipe"


def test_nor_where_runs_are_compared(tmp_path):
    for name in "ab":
        write_run(tmp_path / name)
    runs = Runs([tmp_path])
    runs.find()
    (tmp_path / "b" / names.METRICS).unlink()
    os.mkfifo(tmp_path / "b" / names.METRICS)

    def refused():
        with pytest.raises(ConfigError, match="cannot be read"):
            runs._compare(("a", "b"))
        return True

    assert in_time(refused)


@pytest.mark.parametrize("name", DOWNLOADS)
def test_a_link_shows_and_hands_out_nothing_of_what_it_leads_to(tmp_path, name):
    """The page answers anybody of this machine, and may read more than they."""
    runs, secret = tmp_path / "runs", tmp_path / "signing.pem"
    write_run(runs / "a")
    secret.write_text("-----BEGIN PRIVATE KEY----- words\n")
    (runs / "a" / name).unlink(missing_ok=True)
    (runs / "a" / name).symlink_to(secret)
    own = client(runs)
    assert own.get(f"/file?run=a&name={name}").status_code == 404
    page = own.get("/run?run=a")
    assert page.status_code == 200
    assert "PRIVATE KEY" not in page.text


FIGURES = [
    {"metrics": {"loss": 1.7e308}},
    {"metrics": {"loss": -1.7e308}},
    {"seconds": {"train": -1.0}},
    {"seconds": {"total": 1.7e308, "train": 1.7e308}},
    {"bytes_up": -1, "bytes_down": -1},
    {"bytes_up": (1 << 1023) - 1},
]


@pytest.mark.parametrize("figures", FIGURES, ids=str)
def test_no_figure_of_a_line_leaves_a_run_without_a_page(tmp_path, figures):
    write_run(tmp_path / "a")
    path = tmp_path / "a" / names.METRICS
    lines = [json.loads(line) | figures for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "5 of 5 rounds" in run_sections(Follower(tmp_path / "a").look(), "a")["top"]
    own = client(tmp_path)
    assert own.get("/metrics").status_code == 200
    assert own.get("/run?run=a").status_code == 200


def test_a_folder_whose_name_is_no_text_leaves_the_others_their_figures(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / os.fsdecode(b"\xff"))
    found = client(tmp_path).get("/metrics")
    assert found.status_code == 200
    assert 'fedllm_run_rounds_done{run="a"} 5.0' in found.text
