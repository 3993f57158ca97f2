"""The dashboard over HTTP."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient
from support.browser import Elements
from support.dashboard import Clock, Growing, serving, sign_heads
from support.run_folder import rounds, run_config, summary, write_run

from fedllm.dashboard.application import Dashboard
from fedllm.dashboard.following import Follower
from fedllm.dashboard.pages import run_sections
from fedllm.dashboard.watching import Runs
from fedllm.runs import names

EVIL = '<script>alert(1)</script>"\u202e'


def client(*folders, log=None):
    app = Dashboard(Runs(folders, Clock()), (log if log is not None else []).append)
    return TestClient(app, base_url="http://127.0.0.1:8350", raise_server_exceptions=False)


@pytest.fixture
def shelf(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", run_config(name="other", seed=7, rounds={"count": 9}))
    return tmp_path


def test_a_run_alone_is_shown_at_once(shelf):
    found = client(shelf / "a").get("/")
    assert found.status_code == 200
    for words in ("made-up", "5 of 5 rounds", "epsilon promised", "Northgate", "7.923"):
        assert words in found.text, words
    assert client(shelf / "a").get("/run?run=a").status_code == 200


def test_a_folder_of_runs_is_a_list_from_which_two_are_compared(shelf):
    own = client(shelf)
    page = Elements(own.get("/").text)
    assert [one["value"] for one in page.all("input")] == ["a", "b"]
    assert "made-up" in own.get("/run?run=a").text
    found = own.get("/compare?run=a&run=b")
    assert found.status_code == 200
    assert "rounds.count" in found.text
    assert "Quality beside privacy" in found.text
    assert found.text.count("<polyline") >= 4


@pytest.mark.parametrize("query", ["", "?run=a", "?run=a&run=c", "?run=a&run=../a"])
def test_what_cannot_be_compared_says_what_to_do(shelf, query):
    (shelf / "a" / names.SUMMARY).unlink()
    for text in (f"/compare{query}", "/compare?run=a&run=b"):
        found = client(shelf).get(text)
        assert found.status_code == 422
        assert "What to do:" in found.text


def test_more_runs_than_can_be_told_apart_are_refused(tmp_path):
    for number in range(8):
        write_run(tmp_path / str(number))
    query = "&".join(f"run={number}" for number in range(8))
    assert "7 at most" in client(tmp_path).get(f"/compare?{query}").text


@pytest.mark.parametrize("key", ["", "nothing", "../a", "/etc", "a/../a"])
def test_a_run_that_is_not_there_is_not_looked_for(shelf, key):
    own = client(shelf)
    for path in ("/run", "/events", "/file"):
        assert own.get(path, params={"run": key, "name": names.METRICS}).status_code == 404


def test_files_are_those_that_a_run_leaves_for_others_and_no_more(shelf):
    own, folder = client(shelf), shelf / "a"
    (folder / names.REPORT).write_text("<h1>report</h1>")
    (folder / "identities").mkdir()
    for name in (names.METRICS, names.SUMMARY):
        found = own.get("/file", params={"run": "a", "name": name})
        assert found.content == (folder / name).read_bytes()
        assert "attachment" in found.headers["content-disposition"]
    report = own.get("/file", params={"run": "a", "name": names.REPORT})
    assert "sandbox" in report.headers["content-security-policy"]
    for name in (names.RUN_TOML, "../b/summary.json", "identities", names.PROGRESS, ""):
        assert own.get("/file", params={"run": "a", "name": name}).status_code == 404, name


def test_a_password_of_a_database_is_on_no_page(tmp_path):
    train = {"train": "postgresql://ward:secret@host/db"}
    for name, seed in (("a", 1), ("b", 2)):
        write_run(tmp_path / name, run_config(data=train, seed=seed))
    own = client(tmp_path)
    for path in ("/", "/run?run=a", "/compare?run=a&run=b", "/metrics"):
        assert "secret" not in own.get(path).text, path
    assert "host/db" in own.get("/run?run=a").text


def test_words_of_others_are_text(tmp_path):
    lines = rounds(sites=(EVIL, "b"))
    lines[-1]["dropped"] = {EVIL: EVIL}
    lines[-1]["metrics"][EVIL] = 1.0
    told = summary(run=EVIL, run_id=EVIL, site_names=[EVIL], site_titles={EVIL: EVIL})
    write_run(tmp_path / "a", figures=told, lines=lines)
    write_run(tmp_path / "b", figures=told, lines=lines)
    with (tmp_path / "a" / names.PROGRESS).open("w") as stream:
        stream.write(json.dumps({"kind": "note", "text": EVIL}) + "\n")
    for path in ("/", "/run?run=a", "/compare?run=a&run=b", f"/run?run={EVIL}"):
        text = client(tmp_path).get(path).text
        assert "alert(1)" in text or path == "/"
        assert "<script>alert" not in text
        assert "\u202e" not in text


def test_nothing_comes_from_another_host_and_no_page_has_a_style_or_script_within(shelf):
    sign_heads(shelf / "a", shelf / "keys")
    own = client(shelf)
    for path in ("/", "/run?run=a", "/compare?run=a&run=b", "/run?run=c"):
        found = own.get(path)
        policy = found.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        page = Elements(found.text)
        assert not page.all("style")
        for _, attributes in page.found:
            assert not {"style", "onclick", "onload"} & attributes.keys()
            for name in ("src", "href", "action"):
                value = attributes.get(name) or "/"
                assert value.startswith(("/", "#", "data:,")), value
                assert not value.startswith("//")
        for script in page.all("script"):
            assert own.get(script["src"]).headers["content-type"].startswith("text/javascript")
    assert "http" not in own.get("/live.js").text.replace("https://", "http")


def test_every_page_can_be_heard_and_read_by_keyboard(shelf):
    sign_heads(shelf / "a", shelf / "keys")
    own = client(shelf)
    for path in ("/", "/run?run=a", "/compare?run=a&run=b"):
        text = own.get(path).text
        page = Elements(text)
        assert 'lang="en"' in text
        assert len(page.all("h1")) == len(page.all("main")) == 1
        assert page.all("a")[0]["href"] == "#main"
        levels = [int(level) for level in re.findall(r"<h(\d)", text)]
        assert all(b - a <= 1 for a, b in pairwise(levels))
        for svg in page.all("svg"):
            assert svg.get("aria-label") or svg.get("aria-hidden")
        for table in text.split("<table")[1:]:
            assert "<caption" in table
        boxes = [one for one in page.all("input") if "aria-label" not in one]
        assert not boxes
        for part in page.all("div"):
            if part.get("class") == "scroll":
                assert part["tabindex"] == "0"
                assert part["aria-label"]
        ids = [one["id"] for _, one in page.found if "id" in one]
        assert len(ids) == len(set(ids))


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1:8350", ""])
def test_other_names_and_other_methods_are_refused(shelf, host):
    own = client(shelf)
    assert own.get("/", headers={"host": host}).status_code == 403
    assert own.get("/", headers={"host": "localhost:1"}).status_code == 200
    assert own.post("/").status_code == 405
    assert own.head("/").status_code == 200


@pytest.mark.parametrize(
    ("site", "mode", "status"),
    [
        ("cross-site", "no-cors", 403),
        ("cross-site", "cors", 403),
        ("same-site", "no-cors", 403),
        ("cross-site", "navigate", 200),
        ("same-origin", "cors", 200),
        ("none", "navigate", 200),
    ],
)
def test_a_page_of_another_host_holds_no_place_of_a_viewer(shelf, site, mode, status):
    told = {"sec-fetch-site": site, "sec-fetch-mode": mode}
    assert client(shelf).get("/style.css", headers=told).status_code == status


def test_two_hundred_viewers_cost_one_reading(tmp_path, monkeypatch):
    run = Growing(tmp_path / "run")
    for _ in range(3):
        run.round()
    opened = list[str]()
    real = Path.open

    def noting(self, mode="r", *arguments, **more):
        if self.parent == run.folder and self.name != names.LOCK and "a" not in mode:
            opened.append(self.name)
        return real(self, mode, *arguments, **more)

    monkeypatch.setattr(Path, "open", noting)
    own = client(tmp_path)
    for _ in range(200):
        own.get("/run?run=run")
    assert opened.count(names.METRICS) == opened.count(names.PROGRESS) == 1
    run.round()
    for _ in range(50):
        assert "3 of 5 rounds" in own.get("/run?run=run").text
    assert opened.count(names.METRICS) == 2
    run.die()


def test_a_page_is_made_once_for_all_while_nothing_changes(shelf, monkeypatch):
    made = list[str]()
    monkeypatch.setattr(
        "fedllm.dashboard.watching.run_sections",
        lambda seen, key: made.append(key) or run_sections(seen, key),
    )
    own = client(shelf)
    for _ in range(20):
        own.get("/run?run=a")
    assert made == ["a"]


def test_what_changes_comes_by_itself_and_the_end_is_told(tmp_path):
    run = Growing(tmp_path / "run")
    run.round()
    with serving(tmp_path) as address, httpx.Client(timeout=30) as web:
        page = web.get(f"{address}/run", params={"run": "run"}).text
        (body,) = Elements(page).all("body")
        with web.stream("GET", address + str(body["data-events"])) as stream:
            lines = stream.iter_lines()
            run.round()
            first = next(line for line in lines if line.startswith("data: "))
            told = json.loads(first.removeprefix("data: "))
            assert "1 of 5 rounds" in told["sections"]["top"]
            # What the viewer has already is not sent again.
            assert "notes" not in told["sections"]
            run.die()
            write_run(run.folder)
            assert any(line == "event: over" for line in lines)


def test_a_page_without_scripts_looks_again_by_itself_while_there_is_something_to_see(tmp_path):
    run = Growing(tmp_path / "run")
    own = client(tmp_path)
    assert '<noscript><meta http-equiv="refresh"' in own.get("/run?run=run").text
    run.die()
    write_run(run.folder)
    text = own.get("/run?run=run").text
    assert "refresh" not in text
    assert "live.js" not in text


def test_a_finished_run_is_sent_once_to_who_has_it_not(shelf):
    found = client(shelf).get("/events?run=a")
    assert found.headers["content-type"].startswith("text/event-stream")
    assert found.text.count("event: sections") == 1
    assert found.text.count("event: over") == 1


def test_runs_that_come_and_go_are_noticed(shelf):
    own = client(shelf)
    assert "other" in own.get("/").text
    write_run(shelf / "deep" / "c", run_config(name="third"))
    assert "third" in own.get("/").text
    (shelf / "b" / names.RUN_TOML).unlink()
    assert "other" not in own.get("/").text
    assert own.get("/run?run=b").status_code == 404


def test_figures_for_prometheus(shelf):
    run = Growing(shelf / "c")
    run.round()
    run.round()
    lines = client(shelf).get("/metrics").text.splitlines()
    for line in (
        'fedllm_run_rounds_done{run="c"} 1.0',
        'fedllm_run_rounds_planned{run="c"} 5.0',
        'fedllm_run_state{run="c",state="running"} 1.0',
        'fedllm_run_state{run="a",state="finished"} 1.0',
        'fedllm_run_state{run="a",state="running"} 0.0',
        'fedllm_run_epsilon_promised{run="a"} 8.0',
        'fedllm_run_epsilon_spent{run="a"} 7.9321',
        'fedllm_run_seconds_total{phase="train",run="a"} 60.0',
        'fedllm_run_measure{measure="accuracy",of="test",run="c"} 0.33',
    ):
        assert line in lines, line
    run.die()


def test_an_error_of_the_program_tells_no_words_of_its_own(shelf, monkeypatch):
    def broken(seen, key):
        raise RuntimeError("words")

    monkeypatch.setattr("fedllm.dashboard.watching.run_sections", broken)
    log = list[str]()
    found = client(shelf, log=log).get("/run?run=a")
    assert found.status_code == 500
    assert "words" not in found.text + "".join(log)
    assert "RuntimeError" in log[0]


def test_who_looks_while_the_command_ends_is_sent_away(shelf):
    app = Dashboard(Runs([shelf]), print)
    app.stopping = True
    assert TestClient(app, base_url="http://localhost").get("/").status_code == 503


def test_no_record_no_weight_and_no_key_is_read(shelf):
    """Folders that cannot be read at all: all that the page needs is beside them."""
    for name in ("checkpoints", "adapter", "identities", "sites", "ledgers"):
        (shelf / "a" / name).symlink_to("/nowhere")
    assert Follower(shelf / "a").look().problems == ()


def test_runs_given_one_by_one_have_keys_of_their_own(shelf):
    (shelf / "deep").mkdir()
    write_run(shelf / "deep" / "a", run_config(name="third"))
    own = client(shelf / "a", shelf / "deep" / "a")
    assert "third" in own.get("/run?run=deep/a").text
    assert "made-up" in own.get("/run?run=a").text
