"""The site of all pages is whole, leads nowhere else, and is read without a network."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import pytest
import yaml
from support.browser import headless

ROOT = Path(__file__).resolve().parent.parent
BUILD = "python -m mkdocs build"


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "mkdocs.yml").read_text())


def _loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_hook", ROOT / "docs/site/hook.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hook = _loaded()
PAGES = [
    *(PurePosixPath(path.relative_to(ROOT)) for path in sorted(ROOT.glob("docs/**/*.md"))),
    *hook.other_pages(),
]
each_page = pytest.mark.parametrize("page", PAGES, ids=str)


def leaves(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    for inner in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from leaves(inner)


def test_every_page_is_in_the_contents_once_and_nothing_else_is(config):
    assert Counter(leaves(config["nav"])) == Counter(hook.place(page) for page in PAGES)


# --- nothing of another host -----------------------------------------------------------------


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        for inner in value:
            yield from texts(inner)
    elif isinstance(value, str):
        yield value


def test_the_site_is_told_to_load_nothing_from_another_host(config):
    assert config["strict"] is True
    assert config["theme"]["font"] is False
    # Each asks somebody, or loads something: figures of a repository, analytics, pictures to share.
    assert not {"repo_url", "extra_css", "extra_javascript"} & set(config)
    plugins = [one if isinstance(one, str) else next(iter(one)) for one in config["plugins"]]
    assert plugins == ["search", "offline"]
    assert not {"analytics", "social", "version"} & set(config["extra"])
    assert not [text for text in texts(config) if "//" in text]
    assert any("iframe-worker" in url for url in config["extra"]["polyfills"])
    theme = ROOT / config["theme"]["custom_dir"]
    for url in config["extra"]["polyfills"]:
        assert (theme / url).is_file()
    for path in theme.rglob("*.*"):
        assert not re.search(r"https?://", path.read_text()), path


@each_page
def test_a_page_shows_nothing_of_another_host(page):
    text = (ROOT / page).read_text()
    assert not re.search(r"!\[[^]]*\]\((?:\w+:)?//|<(?:img|script|iframe|link|object)\b", text)
    # The theme fetches what draws it.
    assert "```mermaid" not in text


# --- links -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "link", "expected"),
    [
        ("README.md", "docs/audit.md#epsilon", "audit.md#epsilon"),
        ("README.md", "LICENSE", "files/LICENSE.md"),
        ("README.md", "#examples", "#examples"),
        ("docs/audit.md", "ledger.md", "ledger.md"),
        ("docs/audit.md", "../README.md", "README.md"),
        ("docs/operators/site.md", "../../examples/site.toml", "../files/examples/site.toml.md"),
        ("docs/CHANGELOG.md", "../.github/SECURITY.md", "github/SECURITY.md"),
        ("examples/audit/README.md", "audit.sh", "../../files/examples/audit/audit.sh.md"),
        ("examples/audit/README.md", "../../docs/audit.md", "../../audit.md"),
        ("docs/audit.md", "https://example.org/a.md", "https://example.org/a.md"),
    ],
)
def test_a_link_leads_to_where_the_site_has_its_target(source, link, expected):
    assert hook.moved(f"see [it]({link}).", PurePosixPath(source)) == f"see [it]({expected})."


def test_code_is_left_alone():
    text = "[a](docs/audit.md)\n```\n[a](docs/audit.md)\n```\n[a](docs/audit.md)\n"
    assert hook.moved(text, PurePosixPath("README.md")) == (
        "[a](audit.md)\n```\n[a](docs/audit.md)\n```\n[a](audit.md)\n"
    )


@pytest.fixture(scope="module")
def known() -> set[PurePosixPath]:
    """What the site has: pages, and files that pages link to."""
    return {*PAGES, *hook.shown_files(iter(PAGES))}


@each_page
def test_links_lead_to_files_which_the_site_can_show(page, known):
    for link in hook.links((ROOT / page).read_text()):
        assert hook.target(page, link) in known, f"{link} is no page and no file of text"


def test_a_file_is_shown_whole(known):
    path = PurePosixPath("examples/site.toml")
    assert (ROOT / path).read_text().strip() in hook.shown(path)
    assert hook.place(path).endswith(".md")
    for shown in known - {*PAGES}:
        assert "~~~~~~" not in (ROOT / shown).read_text(), "the fence would end in it"


@each_page
def test_lists_and_code_are_what_they_look_like(page):
    """Python-Markdown wants an empty line before a list, and four spaces inside of one."""
    inside, before = False, ""
    for number, line in enumerate((ROOT / page).read_text().splitlines(), 1):
        if line.lstrip().startswith("```"):
            inside = not inside
            assert (len(line) - len(line.lstrip())) % 4 == 0, f"line {number}"
        item = re.match(r" *(?:[-*]|\d+\.) ", line)
        if not inside and item and before.strip():
            going_on = re.match(r" *(?:[-*]|\d+\.) | {2,}", before)
            assert going_on, f"line {number}: an empty line is missing"
        before = line
    assert not inside


# --- built -----------------------------------------------------------------------------------


def test_it_is_built_in_the_same_way_everywhere():
    assert f"$(BIN)/{BUILD}" in (ROOT / "Makefile").read_text()
    assert f"- run: {BUILD}\n" in (ROOT / ".github/workflows/docs.yml").read_text()
    assert re.search(r"^make .*\bdocs\b", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert "/site/" in (ROOT / ".gitignore").read_text().split()


class Loaded(HTMLParser):
    """What a browser fetches of a page without being asked."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.policy = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        # Of an address that is only named, such as the page's own, nothing is fetched.
        if tag == "link" and told.get("rel") in ("canonical", "alternate", "prev", "next"):
            return
        if tag != "a":
            self.urls += [
                told[name] or "" for name in ("src", "href", "data", "action") if name in told
            ]
        if told.get("http-equiv") == "Content-Security-Policy":
            self.policy = told["content"] or ""


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    pytest.importorskip("material", reason="the extra 'docs' is missing")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", *BUILD.split()[2:], "--site-dir", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def test_the_site_is_built_and_each_page_is_there(built):
    for page in PAGES:
        place = Path(hook.place(page))
        name = "index" if place.name == "README.md" else place.stem
        text = (built / place.parent / f"{name}.html").read_text()
        lang = "zh-Hans" if "zh" in str(page).split("/") or page.stem.endswith(".zh") else "en"
        assert f'<html lang="{lang}"' in text, page
    assert (built / "search/search_index.js").is_file()


def test_no_page_of_it_asks_another_host(built):
    pages = sorted(built.rglob("*.html"))
    assert len(pages) > len(PAGES)
    for path in pages:
        found = Loaded()
        found.feed(path.read_text())
        assert found.policy.startswith("default-src 'self' file: data: blob:"), path
        assert not [url for url in found.urls if re.match(r"(\w+:)?//", url)], path
    for path in built.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", path.read_text()), path


@pytest.mark.slow
def test_it_is_read_and_searched_from_a_folder_without_a_network(built):
    asked, complaints = [], []
    with headless() as browser:
        page = browser.new_context(offline=True).new_page()
        page.set_default_timeout(180_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda line: complaints.append(line.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto((built / "quickstarts/auditor.html").as_uri())
        page.fill("input[name=query]", "noise multiplier")
        page.wait_for_selector(".md-search-result >> text=Glossary")
        page.goto((built / "index.html").as_uri())
        page.click("text=recompute it, attack it")
        assert page.title().startswith("Quickstart: auditor")
    assert asked
    assert all(url.startswith(("file:", "data:", "blob:", "about:")) for url in asked), asked
    assert not complaints
