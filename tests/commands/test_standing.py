"""`fedllm client status`, `pause`, `resume`, `stop` and `dashboard`, as somebody types them."""

from __future__ import annotations

import json
import re
import signal
import stat
import subprocess
import sys

import httpx
import pytest
from support.overview import Site, sent_line, under_way
from typer.testing import CliRunner

from fedllm.cli import app
from fedllm.commands import standing
from fedllm.dashboard.listening import opened
from fedllm.errors import ConfigError
from fedllm.federation.site.brake import Brake


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path)
    made.charge([1, 2])
    made.did(sent_line(1))
    return made


def said(site, command, *more, code=0):
    done = CliRunner().invoke(app, ["client", command, "--kit", str(site.kit), *more])
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


def test_status_in_words_and_as_plain_values(site):
    text = said(site, "status", "--policy", str(site.policy), code=1)
    assert "Site anne of north: NOT RUNNING" in text
    assert "At this rate the budget ends in" in text
    with site.running():
        told = json.loads(said(site, "status", "--json"))
    assert told["state"] == "running"
    assert told["policy"]["file"] == str(site.policy)
    assert told["budget"]["forecast"]["rounds"] > 0


def test_pause_and_resume(site):
    output = said(site, "pause")
    assert re.match(r"paused since \S+, by fedllm client pause: no new round is begun; ", output)
    assert Brake(site.state).paused is not None
    with site.running():
        assert json.loads(said(site, "status", "--json"))["state"] == "paused"
    assert said(site, "resume") == "the site goes on\n"
    assert said(site, "resume") == "the site was not paused\n"
    assert Brake(site.state).paused is None


def test_a_round_that_is_under_way_is_named(site):
    site.note("under_way.json", under_way())
    with site.running():
        output = said(site, "pause")
        assert "this round is finished first: Run 'ward', round 4 of 10" in output
        assert "the service is to end since" in said(site, "stop")
    assert Brake(site.state).ending is not None


def test_a_service_that_does_not_run_is_not_stopped(site):
    done = CliRunner().invoke(app, ["client", "stop", "--kit", str(site.kit)])
    assert isinstance(done.exception, ConfigError)
    assert "no client runs" in done.exception.message
    assert Brake(site.state).ending is None


@pytest.mark.parametrize("command", ["status", "pause", "resume", "stop", "dashboard"])
def test_what_is_no_kit_of_a_site_is_refused(site, tmp_path, command):
    for place in (tmp_path, tmp_path / "operator" / "kits" / "coordinator"):
        done = CliRunner().invoke(app, ["client", command, "--kit", str(place)])
        assert isinstance(done.exception, ConfigError), done.output


def test_two_pages_on_one_port(site):
    arguments = ["client", "dashboard", "--kit", str(site.kit), "--policy", str(site.policy)]
    with opened(0, "--port") as first:
        port = first.getsockname()[1]
        done = CliRunner().invoke(app, [*arguments, "--port", str(port)])
    assert f"cannot listen on 127.0.0.1:{port}" in done.exception.message
    assert not (site.state / "page-token").exists()


@pytest.mark.parametrize("person", [True, False])
def test_a_token_is_printed_for_a_person_and_into_no_log(tmp_path, monkeypatch, capsys, person):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: person)
    standing._tell("http://127.0.0.1:8351/", "secret", tmp_path / "page-token")
    printed = capsys.readouterr().out
    assert ("enter?token=secret" in printed) == ("secret" in printed) == person
    assert (str(tmp_path / "page-token") in printed) != person


@pytest.mark.slow
@pytest.mark.parametrize(("order", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_the_page_is_served_until_it_is_told_to_stop(site, order, code):
    """Its token is in a file of the kit's owner, and in no log."""
    command = [sys.executable, "-m", "fedllm", "client", "dashboard", "--kit", str(site.kit)]
    command += ["--policy", str(site.policy), "--port", "0"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **streams) as program:
        line = program.stdout.readline()
        address, file = re.fullmatch(
            r"the page is at (http://127\.0\.0\.1:\d+/) and asks for the token in (\S+)\n", line
        ).groups()
        path = site.state / "page-token"
        assert file == str(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        token = path.read_text().strip()
        assert len(token) >= 43
        with httpx.Client(base_url=address, timeout=60, follow_redirects=True) as web:
            assert web.get("/").status_code == 401
            assert web.get("/enter", params={"token": "x"}).status_code == 403
            assert "ward" in web.get("/enter", params={"token": token}).text
        program.send_signal(order)
        assert program.wait(60) == code
        rest = line + program.stdout.read() + program.stderr.read()
    assert token not in rest
    assert not path.exists()


@pytest.mark.slow
def test_a_service_that_runs_hears_of_a_pause_and_ends_when_it_is_told(tmp_path):
    """Its coordinator is not there; its own people are."""
    site = Site(tmp_path, '[model]\npath = "model"\n[data]\ntrain = "records.jsonl"\n')
    (tmp_path / "records.jsonl").write_text('{"text": "made up", "label": "one"}\n' * 9)
    Brake(site.state).pause("a test")
    command = [sys.executable, "-m", "fedllm", "client", "start", "--kit", str(site.kit)]
    command += ["--policy", str(site.policy)]
    with subprocess.Popen(command, text=True, stderr=subprocess.PIPE) as program:
        said_by_it = iter(program.stderr)
        assert any(
            "paused: no round is begun until the site goes on" in line for line in said_by_it
        )
        told = json.loads(said(site, "status", "--json"))
        assert (told["state"], told["service"]["connected"]) == ("paused", False)
        assert "the service is to end since" in said(site, "stop")
        assert any("the service ends, as it was told since" in line for line in said_by_it)
        assert program.wait(300) == 0
    # Fulfilled; the pause is not.
    assert not (site.state / "stopping.json").exists()
    assert Brake(site.state).paused is not None
