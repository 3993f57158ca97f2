"""The dashboard in headless Chromium: live, by keyboard, by ear, in light and dark."""

from __future__ import annotations

import pytest
from support.browser import headless, watched_pages
from support.dashboard import Growing, serving, sign_heads
from support.run_folder import run_config, write_run

pytestmark = pytest.mark.slow
WIDTHS = (390, 820, 1400)


@pytest.fixture(scope="module")
def chromium():
    with headless() as browser:
        yield browser


@pytest.fixture
def opened(chromium):
    with watched_pages(chromium) as make:
        yield make


@pytest.fixture
def shelf(tmp_path):
    write_run(tmp_path / "a")
    sign_heads(tmp_path / "a", tmp_path / "keys")
    write_run(tmp_path / "b", run_config(name="other", seed=7))
    with serving(tmp_path) as address:
        yield address


def test_a_run_is_followed_from_its_start_to_its_end(tmp_path, opened):
    run, page = Growing(tmp_path / "run"), opened()
    with serving(tmp_path / "run") as address:
        page.goto(address)
        page.get_by_text("0 of 5 rounds").wait_for()
        run.round()
        run.answered(1, "Northgate")
        page.get_by_text("has answered in round 1").wait_for()
        page.locator("summary", has_text="loss as a table").click()
        run.round({"dropped": {"Riverside": "the site's budget is spent"}})
        page.get_by_text("1 of 5 rounds", exact=True).wait_for()
        page.get_by_text("not in round 1: the site's budget is spent").wait_for()
        # What was open stays so, and the keyboard where it was.
        assert page.locator("#m0-table").get_attribute("open") is not None
        assert page.evaluate("document.activeElement.innerText") == "loss as a table"
        for _ in range(4):
            run.round()
        run.die()
        write_run(run.folder)
        page.locator(".state", has_text="finished").wait_for()
        page.get_by_text("This page does not change any more.").wait_for()
        assert page.title() == "made-up"


def test_two_runs_are_chosen_and_compared_with_the_keyboard_alone(shelf, opened):
    page = opened()
    page.goto(shelf)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    chosen = 0
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.type") == "checkbox":
            page.keyboard.press("Space")
            chosen += 1
        elif page.evaluate("document.activeElement.tagName") == "BUTTON":
            page.keyboard.press("Enter")
            break
    assert chosen == 2
    page.get_by_role("heading", name="Runs compared").wait_for()
    assert page.get_by_role("img").count() >= 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", ["/", "/run?run=a", "/compare?run=a&run=b"])
def test_no_width_cuts_a_page_and_no_rule_of_accessibility_is_broken(shelf, opened, path, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = opened(color_scheme=scheme)
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        page.goto(shelf + path)
        page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
        assert not page.evaluate("document.documentElement.scrollWidth > innerWidth"), width
        found = axe.run(page).response["violations"]
        told = [(one["id"], one["impact"], one["nodes"][0]["html"]) for one in found]
        assert not told, (width, told)


def test_without_scripts_there_are_the_same_figures(tmp_path, opened):
    run, page = Growing(tmp_path / "run"), opened(java_script_enabled=False)
    run.round()
    with serving(tmp_path) as address:
        page.goto(f"{address}/run?run=run")
        page.locator("summary", has_text="accuracy as a table").click()
        page.get_by_role("cell", name="0.19").first.wait_for()
    run.die()


def test_the_report_is_shown_in_its_own_style(tmp_path, opened):
    folder, page = write_run(tmp_path / "run"), opened()
    (folder / "report.html").write_text(
        "<title>r</title><style>h1 { color: teal }</style><h1>Report</h1>"
    )
    with serving(folder) as address:
        page.goto(f"{address}/file?run=run&name=report.html")
        page.get_by_role("heading", name="Report").wait_for()
