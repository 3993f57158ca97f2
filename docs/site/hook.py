"""What mkdocs is told of pages and files that lie outside ``docs/``.

READMEs of the repository and of the examples are pages of the site, and every other file that a
page links to is shown as one, so that the site has no link that leads out of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
DOCS = PurePosixPath("docs")
OTHERS = ("README.md", "README.zh.md", "examples/*.md", "examples/*/*.md", ".github/*.md")
# A link, or an image, to something that is no address of its own.
_LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)\s#]+)((?:#[^)\s]*)?)(?=\))")
_FENCE = re.compile(r"^( *)(```+|~~~+).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
_LANGUAGES = {".toml": "toml", ".py": "python", ".sh": "bash", ".service": "ini"}


def other_pages() -> list[PurePosixPath]:
    """Return the pages that lie outside ``docs/``, as the repository names them."""
    found = (path for pattern in OTHERS for path in sorted(ROOT.glob(pattern)))
    return [PurePosixPath(path.relative_to(ROOT).as_posix()) for path in found]


def place(path: PurePosixPath) -> str:
    """Return where the site has a file of the repository."""
    if path.is_relative_to(DOCS):
        return str(path.relative_to(DOCS))
    if path.suffix == ".md":
        return str(path).removeprefix(".")
    return f"files/{path}.md"


def links(markdown: str) -> Iterator[str]:
    """Yield what a page links to, as it is written there, without anchors."""
    for found in _LINK.finditer(_FENCE.sub("", markdown)):
        yield found[1]


def target(source: PurePosixPath, link: str) -> PurePosixPath:
    """Return which file of the repository a link of ``source`` leads to."""
    return PurePosixPath(os.path.normpath(source.parent / link))


def moved(markdown: str, source: PurePosixPath) -> str:
    """Return a page's text with the links that hold where the site has it."""
    here = PurePosixPath(place(source)).parent

    def there(found: re.Match[str]) -> str:
        return os.path.relpath(place(target(source, found[1])), here) + found[2]

    parts, end = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [_LINK.sub(there, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, _LINK.sub(there, markdown[end:])])


def shown_files(pages: Iterator[PurePosixPath]) -> list[PurePosixPath]:
    """Return the files outside ``docs/``, other than pages, that pages link to."""
    found = {target(page, link) for page in pages for link in links((ROOT / page).read_text())}
    known = {*other_pages()}
    return sorted(
        path
        for path in found
        if path not in known and not path.is_relative_to(DOCS) and (ROOT / path).is_file()
    )


def shown(path: PurePosixPath) -> str:
    """Return the page that shows a file; who searches looks for pages about it."""
    language = _LANGUAGES.get(path.suffix, "")
    text = (ROOT / path).read_text(encoding="utf-8").rstrip("\n")
    return f"---\nsearch:\n  exclude: true\n---\n# {path}\n\n~~~~~~{language}\n{text}\n~~~~~~\n"


# --- called by mkdocs ----------------------------------------------------------------------------


def on_config(config: MkDocsConfig) -> None:
    """Let headings have the anchors that the repository's pages link to."""
    from pymdownx.slugs import slugify

    anchors: dict[str, Any] = config.mdx_configs.setdefault("toc", {})
    anchors["slugify"] = slugify(case="lower")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside ``docs/``, and files that pages link to."""
    from mkdocs.structure.files import File, InclusionLevel

    inside = [DOCS / file.src_uri for file in files.documentation_pages()]
    for page in other_pages():
        files.append(File.generated(config, place(page), abs_src_path=str(ROOT / page)))
    for path in shown_files(iter([*inside, *other_pages()])):
        files.append(
            File.generated(
                config, place(path), content=shown(path), inclusion=InclusionLevel.NOT_IN_NAV
            )
        )
    return files


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Tell a browser, and who has the page read aloud, that a Chinese page is one."""
    chinese = page.file.src_uri.startswith("zh/") or page.file.src_uri == "README.zh.md"
    return output.replace('<html lang="en"', '<html lang="zh-Hans"', 1) if chinese else output


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let the links of a page lead to where the site has their targets."""
    at = page.file.abs_src_path
    if at is None:
        return markdown
    return moved(markdown, PurePosixPath(Path(at).resolve().relative_to(ROOT).as_posix()))
