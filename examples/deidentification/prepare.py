"""Mark the invented patients' names in ACI-Bench's visits, and cut the visits into windows.

    python examples/deidentification/prepare.py OUT

writes OUT/train.jsonl and OUT/test.jsonl, one window a line: text, spans, visit, subset. The data
set names each visit's patient; what is marked is where these names stand in its dialogue and its
note, in any case. Nobody looked at the result: names of doctors and relatives are not marked, a
name that is a word of English is marked as the word too, and one patient's name is given as 33.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
LABEL, WINDOW = "NAME", 600


def names_in(text: str, names: list[str]) -> list[dict[str, object]]:
    """Return the spans where names stand; several with white space between them are one."""
    one = "|".join(re.escape(name) for name in names)
    pattern = re.compile(rf"\b(?:{one})(?:\s+(?:{one}))*\b", re.IGNORECASE)
    return [
        {"start": match.start(), "end": match.end(), "label": LABEL}
        for match in pattern.finditer(text)
    ]


def windows(text: str) -> Iterator[str]:
    """Cut a text at white space into parts of at most `WINDOW` characters, about equal."""
    words, part = text.split(), ""
    for word in words:
        if part and len(part) + len(word) >= WINDOW:
            yield part
            part = ""
        part = f"{part} {word}" if part else word
    if part:
        yield part


def records(path: Path) -> Iterator[dict[str, object]]:
    """Yield the windows of a file's visits; those whose patient has no name are left out."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for visit in map(json.loads, lines):
            names = [visit[key].strip() for key in ("patient_firstname", "patient_familyname")]
            names = [name for name in names if name]
            if not names:
                continue
            for text in (visit["dialogue"], visit["note"]):
                for part in windows(text):
                    yield {
                        "text": part,
                        "spans": names_in(part, names),
                        "visit": visit["id"],
                        "subset": visit["subset"],
                    }


def main(out: Path) -> None:
    """Write both files and say what is in them."""
    data = Path(os.environ.get("FEDLLM_DATA", HERE / "../../../shared/data")) / "aci_bench"
    out.mkdir(parents=True, exist_ok=True)
    for name, parts in {"train": ("train", "val"), "test": ("test",)}.items():
        rows = [row for part in parts for row in records(data / f"{part}.jsonl.gz")]
        path = out / f"{name}.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        spans = sum(len(row["spans"]) for row in rows)  # type: ignore[arg-type, misc]
        visits = len({row["visit"] for row in rows})
        print(f"{path}: {len(rows)} windows of {visits} visits, {spans} names")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
