"""A site's page over HTTP: what it shows, and what its buttons do."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import httpx
import pytest
from starlette.testclient import TestClient
from support.browser import Elements
from support.overview import TOKEN, Site, sent_line, serving, ticking, under_way

from fedllm.overview.application import SitePage
from fedllm.privacy.ledger.audit import verify_ledger

BASE = "http://127.0.0.1:8351"
EVIL = '<script>alert(1)</script>"\u202e'


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path)
    made.charge([1, 2, 3])
    made.charge([4], released=False)
    made.did(sent_line(1), sent_line(2), sent_line(3))
    return made


class Browser:
    """A browser that was let in, and the page that it has."""

    def __init__(self, site, log=None):
        self.app = SitePage(site.look(), TOKEN, (log if log is not None else []).append, ticking)
        self.web = TestClient(self.app, base_url=BASE, follow_redirects=False)
        found = self.web.get("/enter", params={"token": TOKEN})
        assert found.status_code == 303
        self.home = found.headers["location"]

    def page(self):
        found = self.web.get(self.home)
        assert found.status_code == 200
        return found.text

    def press(self, action, **more):
        (form,) = set(re.findall(r'name="form" value="([^"]+)"', self.page()))
        return self.web.post(
            f"{self.home}{action}", data={"form": form, **more}, headers={"origin": BASE}
        )


@pytest.fixture
def browser(site):
    return Browser(site)


def test_all_of_it_stands_on_the_page(site, browser):
    site.note("under_way.json", under_way())
    with site.running():
        text = browser.page()
    for words in (
        "<h1>anne</h1>",
        "Run &#39;ward&#39;, round 4 of 10",
        "is reserved: charged for rounds of which no result left this site",
        "At this rate the budget ends in",
        "36,864 numbers: changes of the shared model&#39;s trained numbers; 221 kB",
        "masked, so that no single site&#39;s part can be opened",
        "charged, nothing sent",
        'class="gauge"',
        'class="chart"',
        "sites in a sum that may be opened",
        str(site.policy),
        "ledger.jsonl",
        "Stop the service",
    ):
        assert words in text, words


def test_pause_and_resume_by_their_buttons(site, browser):
    assert "Resume" not in browser.page()
    done = browser.press("pause")
    assert (done.status_code, done.headers["location"]) == (303, browser.home)
    assert site.look().brake.paused.by == "the site's page"
    text = browser.page()
    assert 'id="pause"' not in text
    assert browser.press("resume").status_code == 303
    assert site.look().brake.paused is None
    assert 'id="resume"' not in browser.page()


def test_a_service_is_stopped_only_by_who_says_to_be_sure(site, browser):
    with site.running():
        for given in ({}, {"sure": "no"}):
            found = browser.press("stop", **given)
            assert found.status_code == 422
            assert site.look().brake.ending is None
        assert browser.press("stop", sure="yes").status_code == 303
        assert site.look().brake.ending.by == "the site's page"
        assert "stopping" in browser.page()


def test_a_service_that_does_not_run_has_no_button_to_stop_it(site, browser):
    assert 'id="stop"' not in browser.page()
    assert browser.press("stop", sure="yes").status_code == 303
    assert site.look().brake.ending is None


def test_the_export_is_what_the_command_writes(site, browser, tmp_path):
    found = browser.web.get(f"{browser.home}ledger.jsonl")
    assert found.status_code == 200
    assert 'filename="ledger-anne-8.jsonl"' in found.headers["content-disposition"]
    path = tmp_path / "export.jsonl"
    path.write_bytes(found.content)
    key = site.look().kit.public_key
    assert verify_ledger(path, key).head == verify_ledger(site.ledger).head


def test_a_ledger_that_does_not_hold_is_not_exported(site, browser):
    content = site.ledger.read_bytes()
    site.ledger.write_bytes(content.replace(b'"round":2', b'"round":7'))
    found = browser.web.get(f"{browser.home}ledger.jsonl")
    assert found.status_code == 409
    assert "entry" in found.text
    page = browser.page()
    assert "Something is wrong" in page
    assert "There is no ledger to export" in page
    assert 'class="gauge"' not in page


def test_the_page_is_made_anew_when_something_changed_and_not_before(site, browser):
    first = browser.page()
    assert browser.page() == first
    site.charge([5])
    assert "round 5 of run" in browser.page()


def test_changes_come_by_themselves(site):
    with serving(site.look()) as (page, address), httpx.Client(timeout=60) as web:
        home = web.get(f"{address}/enter", params={"token": TOKEN}).headers["location"]
        (body,) = Elements(web.get(address + home).text).all("body")
        with web.stream("GET", address + str(body["data-events"])) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            lines = stream.iter_lines()
            site.charge([5])
            line = next(line for line in lines if line.startswith("data: "))
        told = json.loads(line.removeprefix("data: "))
        assert "round 5 of run" in told["sections"]["budget"]
        # What the viewer has already is not sent again.
        assert "policy" not in told["sections"]
        assert home == page.base


def test_it_works_without_scripts_too(browser):
    assert '<noscript><meta http-equiv="refresh"' in browser.page()


def test_words_of_others_are_text(site):
    site.did(
        sent_line(5, name=EVIL),
        {
            **{"at": "x", "what": "refused", "message": "join", "run": EVIL, "name": EVIL},
            **{"round": EVIL, "rounds": 1, "attempt": 1, "purpose": "x", "reason": EVIL},
        },
    )
    site.note("under_way.json", under_way(name=EVIL))
    site.charge([5], name=EVIL)
    with site.running():
        text = Browser(site).page()
    assert text.count("alert(1)") >= 4
    assert "<script>alert" not in text
    assert "\u202e" not in text


def test_nothing_comes_from_another_host_and_the_page_has_no_style_or_script_within(browser):
    web = browser.web
    for path in (browser.home, "/", "/enter?token=wrong", f"{browser.home}nothing"):
        found = web.get(path)
        policy = found.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "form-action 'self'" in policy
        assert "unsafe" not in policy
        assert found.headers["cache-control"] == "no-store"
        page = Elements(found.text)
        assert not page.all("style")
        for _, attributes in page.found:
            assert not {"style", "onclick", "onload"} & attributes.keys()
            for name in ("src", "href", "action"):
                value = attributes.get(name) or "/"
                assert value.startswith(("/", "#", "data:,")), value
                assert not value.startswith("//")


def test_the_page_can_be_heard_and_read_by_keyboard(site, browser):
    site.did({"at": "x", "what": "refused", "message": "join", "run": "r", "name": "n", "round": 1,
              "rounds": 1, "attempt": 1, "purpose": "x", "reason": "PausedError: no"})  # fmt: skip
    with site.running():
        pages = [browser.page(), browser.web.get("/").text]
    for text in pages:
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
        ids = [one["id"] for _, one in page.found if "id" in one]
        assert len(ids) == len(set(ids))
        labels = {one["for"] for one in page.all("label")}
        for box in page.all("input"):
            assert box["type"] == "hidden" or box["id"] in labels


def test_an_error_of_the_program_tells_no_words_of_its_own(site, monkeypatch):
    log = list[str]()
    browser = Browser(site, log)

    def broken(*_):
        raise RuntimeError("words")

    monkeypatch.setattr("fedllm.overview.application.site_page", broken)
    found = browser.web.get(browser.home)
    assert found.status_code == 500
    assert "words" not in found.text + "".join(log)
    assert log == ["error: RuntimeError"]


def test_a_pause_that_cannot_be_lifted_is_said(site, browser):
    (site.state / "paused.json").mkdir()
    found = browser.press("resume")
    assert found.status_code == 500
    assert "cannot be removed" in found.text


def test_who_looks_while_the_command_ends_is_sent_away(browser):
    browser.app.stopping = True
    assert browser.web.get(browser.home).status_code == 503
