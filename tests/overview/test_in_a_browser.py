"""A site's page in headless Chromium: let in, by keyboard, without scripts, in light and dark.

Wants Debian's package ``chromium`` and the extra ``browser`` of pyproject.toml.
"""

from __future__ import annotations

import pytest
from support.browser import headless, watched_pages
from support.overview import TOKEN, Site, sent_line, serving, under_way

from fedllm.federation.site.brake import Brake

pytestmark = pytest.mark.slow
WIDTHS = (390, 820, 1400)


@pytest.fixture(scope="module")
def chromium():
    with headless() as browser:
        yield browser


@pytest.fixture
def opened(chromium):
    # A browser itself tells of each answer that says no, and of a server that ends.
    with watched_pages(chromium, "Failed to load resource: ") as make:
        yield make


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path)
    made.charge([1, 2, 3])
    made.charge([4], released=False)
    made.did(
        *(sent_line(number) for number in (1, 2, 3)),
        {
            **{"at": "2026-12-01T09:40:00+00:00", "what": "refused", "message": "join"},
            **{"run": "run-1", "name": "ward", "round": 4, "rounds": 10, "attempt": "?"},
            **{"purpose": "?", "reason": "PausedError: this site is paused"},
        },
    )
    made.note("under_way.json", under_way())
    return made


def focused(page, script):
    return page.evaluate(f"document.activeElement.{script}")


def test_who_is_given_the_address_is_let_in_and_nobody_else(site, opened):
    page = opened()
    with site.running(), serving(site.look()) as (own, address):
        page.goto(address)
        page.get_by_label("Token").wait_for()
        page.get_by_label("Token").fill(TOKEN)
        page.get_by_role("button", name="Open the page").click()
        page.get_by_role("heading", name="Privacy budget").wait_for()
        # Neither the address nor a script has what opens it.
        assert TOKEN not in page.url
        assert page.evaluate("document.cookie") == ""
        assert page.url == address + own.base
        stranger = opened()
        assert stranger.goto(page.url).status == 401
        stranger.goto(f"{address}/enter?token={TOKEN}")
        stranger.get_by_role("heading", name="Privacy budget").wait_for()


def test_a_site_is_paused_and_goes_on_by_keyboard_alone(site, opened):
    page = opened()
    with site.running(), serving(site.look()) as (_, address):
        page.goto(f"{address}/enter?token={TOKEN}")
        page.keyboard.press("Tab")
        assert focused(page, "className") == "skip"
        page.keyboard.press("Enter")
        for button in ("pause", "resume"):
            for _ in range(40):
                page.keyboard.press("Tab")
                if focused(page, "id") == button:
                    break
            assert focused(page, "id") == button
            page.keyboard.press("Enter")
            other = "resume" if button == "pause" else "pause"
            page.locator(f"#{other}").wait_for()
            assert (Brake(site.state).paused is not None) == (button == "pause")


def test_what_changes_comes_by_itself_and_the_keyboard_stays_where_it_was(site, opened):
    page = opened()
    with site.running(), serving(site.look()) as (_, address):
        page.goto(f"{address}/enter?token={TOKEN}")
        page.locator("#budget-words > summary").click()
        Brake(site.state).pause("a test")
        page.locator(".state", has_text="paused").wait_for()
        assert page.locator("#budget-words").get_attribute("open") is not None
        site.charge([5])
        page.get_by_text("round 5 of run").first.wait_for()


def test_a_service_is_stopped_only_when_the_box_is_ticked(site, opened):
    page = opened()
    with site.running(), serving(site.look()) as (_, address):
        page.goto(f"{address}/enter?token={TOKEN}")
        page.locator("#stop").click()
        assert Brake(site.state).ending is None
        page.locator("#sure").check()
        page.locator("#stop").click()
        page.locator(".state", has_text="stopping").wait_for()
        assert Brake(site.state).ending is not None


def test_without_scripts_there_are_the_same_figures_and_buttons(site, opened):
    page = opened(java_script_enabled=False)
    with site.running(), serving(site.look()) as (_, address):
        page.goto(f"{address}/enter?token={TOKEN}")
        page.get_by_role("cell", name="charged, nothing sent").wait_for()
        page.locator("#pause").click()
        page.locator("#resume").wait_for()
        assert Brake(site.state).paused is not None
        with page.expect_download() as found:
            page.get_by_role("link", name="Export the ledger").click()
        assert found.value.suggested_filename == "ledger-anne-8.jsonl"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_width_cuts_a_page_and_no_rule_of_accessibility_is_broken(site, opened, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = opened(color_scheme=scheme)
    with site.running(), serving(site.look()) as (own, address):
        page.goto(f"{address}/enter?token={TOKEN}")
        for path in (own.base, "/", f"{own.base}nothing"):
            for width in WIDTHS:
                page.set_viewport_size({"width": width, "height": 900})
                page.goto(address + path)
                page.evaluate(
                    "document.querySelectorAll('details').forEach((one) => (one.open = true))"
                )
                cut = page.evaluate("document.documentElement.scrollWidth > innerWidth")
                assert not cut, (path, width)
                found = axe.run(page).response["violations"]
                told = [(one["id"], one["impact"], one["nodes"][0]["html"]) for one in found]
                assert not told, (path, width, told)
