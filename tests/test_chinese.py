"""The Chinese pages say what the English ones say: the same commands, figures, names and links.

Whoever changes a command or a figure in one of the two changes it in the other.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ENGLISH = [ROOT / "README.md", *sorted(ROOT.glob("docs/quickstarts/*.md"))]
_CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`[^`\n]+`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FIGURE = re.compile(r"(?<![\w.])\d+(?:[.,]\d+)*(?:e-?\d+)?")
# Written as words they could not be compared.
_IN_WORDS = re.compile(
    r"\b(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w+teen|twenty|thirty|forty"
    r"|fifty|sixty|seventy|eighty|ninety|hundred|thousand|million)s?(?: and a half)?"
    r"[ -](?:to \w+ )?(?:CPU-)?(?:minute|second|hour|gigabyte|GB|round|record|percent)"
)


def chinese(path: Path) -> Path:
    """Where the Chinese page of an English one lies."""
    if path == ROOT / "README.md":
        return ROOT / "README.zh.md"
    return ROOT / "docs/zh" / path.relative_to(ROOT / "docs")


@dataclass(frozen=True)
class Part:
    """What a section holds that no language changes."""

    level: int
    code: list[tuple[str, Counter[str]]]
    spans: Counter[str]
    figures: Counter[str]
    links: Counter[str]
    tables: list[int]


def parts(text: str, path: Path) -> list[Part]:
    """Return the sections of a page, each with its heading."""
    hidden = _CODE.sub(lambda found: "\n" * found[0].count("\n"), text)
    starts = [found.start() for found in re.finditer(r"^#+ ", hidden, re.MULTILINE)]
    lines = [hidden[:at].count("\n") for at in starts]
    rows = text.splitlines()
    pieces = [rows[a:b] for a, b in zip(lines, [*lines[1:], len(rows)], strict=True)]
    assert lines and lines[0] == 0, "a page begins with its heading"
    return [_part("\n".join(piece), path) for piece in pieces]


def _part(text: str, path: Path) -> Part:
    code = [_block(block) for block in _CODE.findall(text)]
    words = _CODE.sub("", text)
    links = Counter(_leads_to(link, path) for link in _LINK.findall(words))
    told = _LINK.sub("]", words)
    spans = Counter(_SPAN.findall(told))
    told = _SPAN.sub("", told)
    return Part(
        level=len(text) - len(text.lstrip("#")),
        code=code,
        spans=spans,
        figures=Counter(_FIGURE.findall(told)),
        links=links,
        tables=[line.count("|") for line in told.splitlines() if line.startswith("|")],
    )


def _block(block: str) -> tuple[str, Counter[str]]:
    """Return the commands of a block, and the figures of what is said beside them."""
    lines = [re.split(r"\s#\s", line) for line in block.splitlines()]
    beside = " ".join(" ".join(line[1:]) for line in lines)
    return "\n".join(line[0].rstrip() for line in lines), Counter(_FIGURE.findall(beside))


def _leads_to(link: str, path: Path) -> str:
    """Return what a link leads to, the Chinese page standing for the English one."""
    if "://" in link:
        return link
    name = link.partition("#")[0]
    there = Path(os.path.normpath(path.parent / name)) if name else path
    for english in ENGLISH:
        if there == chinese(english):
            there = english
    return str(there.relative_to(ROOT))


@pytest.mark.parametrize("path", ENGLISH, ids=lambda path: path.stem)
def test_the_chinese_page_says_the_same(path):
    other = chinese(path)
    said, also = parts(path.read_text(), path), parts(other.read_text(), other)
    assert [part.level for part in said] == [part.level for part in also]
    for number, (one, two) in enumerate(zip(said, also, strict=True), 1):
        for name in ("code", "spans", "figures", "links", "tables"):
            assert getattr(one, name) == getattr(two, name), f"section {number}: {name}"


@pytest.mark.parametrize("path", ENGLISH, ids=lambda path: path.stem)
def test_figures_are_written_as_figures(path):
    words = _CODE.sub("", path.read_text())
    assert not _IN_WORDS.search(words), "write it in digits, so that it can be compared"


def test_every_chinese_page_has_an_english_one():
    found = {ROOT / "README.zh.md", *ROOT.glob("docs/zh/**/*.md")}
    assert found == {chinese(path) for path in ENGLISH}


def test_a_chinese_page_is_written_in_chinese():
    for path in map(chinese, ENGLISH):
        text = _SPAN.sub("", _LINK.sub("]", _CODE.sub("", path.read_text())))
        assert len(re.findall(r"[一-鿿]", text)) > 2 * len(re.findall(r"[A-Za-z]{2,}", text)), path
        # Half a full stop is what a translation in haste leaves.
        assert not re.search(r"[一-鿿] ?[,;:?!](?:\s|$)|[一-鿿]\.(?:\s|$)", text), path


PAGE = """# A

Takes 10 minutes, see [it](docs/audit.md#epsilon).

```
fedllm simulate run.toml    # 5 rounds
```

## B

| a | `b` |
|---|---|
| 0.914 | 2,000 |
"""


@pytest.mark.parametrize(
    ("before", "after", "name"),
    [
        ("simulate run.toml", "simulate walk.toml", "code"),
        ("# 5 rounds", "# 6 rounds", "code"),
        ("10 minutes", "15 minutes", "figures"),
        ("0.914", "0.915", "figures"),
        ("2,000", "3,000", "figures"),
        ("`b`", "`c`", "spans"),
        ("audit.md", "ledger.md", "links"),
        ("| 0.914 | 2,000 |\n", "", "tables"),
        ("## B", "### B", "level"),
    ],
)
def test_how_a_change_of_one_page_alone_is_seen(before, after, name):
    path = ROOT / "README.md"
    said, also = parts(PAGE, path), parts(PAGE.replace(before, after), path)
    assert [getattr(part, name) for part in said] != [getattr(part, name) for part in also]


def test_what_stands_beside_a_command_may_be_in_another_language():
    path = ROOT / "README.md"
    other = PAGE.replace("# 5 rounds", "# 共 5 轮").replace("Takes 10 minutes", "需要 10 分钟")
    assert parts(PAGE, path) == parts(other, path)


def test_a_page_of_the_other_language_is_the_same_page():
    english, other = ROOT / "docs/quickstarts/auditor.md", ROOT / "docs/zh/quickstarts/auditor.md"
    assert _leads_to("researcher.md", english) == _leads_to("researcher.md", other)
    assert _leads_to("../audit.md", english) == _leads_to("../../audit.md", other)
    assert _leads_to("README.zh.md", ROOT / "README.zh.md") == "README.md"
