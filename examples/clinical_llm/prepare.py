"""Make prompts and responses of the four public data sets, in files that the runs here read.

    python examples/clinical_llm/prepare.py OUT [--every N]

writes OUT/TASK/train.jsonl, choose.jsonl and test.jsonl for each of the four tasks, one record a
line: prompt, response, and site where there are natural ones. `choose.jsonl` is a tenth of the
training file that no run is trained on: settings are chosen by it, never by the test file. With
--every N only each Nth training record of a site is kept. OUT/medquad/alone.jsonl holds the
training records of one hospital, the one of middle size. OUT/public.jsonl are public texts on
anything, of no hospital.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
PUBLIC_TEXTS = 256
# Characters: what is longer would be cut off where the answer may stand.
LONGEST_PASSAGE = 400
Row = dict[str, str]
Raw = dict[str, object]


@dataclass(frozen=True)
class Source:
    """Where a task's records come from, and how one becomes a prompt and a response.

    Attributes
    ----------
    group : callable
        What a record is about: records about one thing are all in one part.
    fits : callable
        Whether a record is used at all.
    """

    name: str
    record: Callable[[Raw], Row]
    group: Callable[[Raw], str]
    fits: Callable[[Raw], bool] = lambda _: True


def _medquad(row: Raw) -> Row:
    return {
        "prompt": str(row["question"]),
        "response": str(row["answer"]),
        "site": str(row["source"]),
    }


def _pubmedqa(row: Raw) -> Row:
    # The question last: where a text is too long, the abstract's beginning is cut off.
    prompt = f"{row['context']}\n{row['question']} Answer yes, no or maybe."
    return {"prompt": prompt, "response": str(row["label"])}


def _notes(row: Raw) -> Row:
    prompt = f"{row['dialogue']}\nWrite the section {row['section_header']} of the visit's note."
    return {"prompt": prompt, "response": str(row["section_text"])}


def _chinese(row: Raw) -> Row:
    answers = row["answers"]
    # Several right answers, of which training takes the first; JSON keeps them for scoring.
    return {
        "prompt": f"{row['context']}\n{row['question']}",
        "response": str(answers[0]),  # type: ignore[index]
        "answers": json.dumps(answers, ensure_ascii=False),
    }


SOURCES = {
    "medquad": Source("medquad", _medquad, lambda row: str(row["focus"] or row["question"])),
    "pubmedqa": Source("pubmedqa", _pubmedqa, lambda row: str(row["id"])),
    "notes": Source("mts_dialog", _notes, lambda row: str(row["id"])),
    "chinese": Source(
        "zh_reading",
        _chinese,
        lambda row: str(row["title"]),
        lambda row: len(str(row["context"])) <= LONGEST_PASSAGE,
    ),
}


def read(path: Path) -> list[Raw]:
    """Read a data set's file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def kept_back(group: str) -> bool:
    """Say whether a group belongs to the tenth by which settings are chosen."""
    return hashlib.sha256(group.encode()).digest()[0] % 10 == 0


def thinned(rows: Iterable[Row], every: int) -> list[Row]:
    """Keep each ``every``-th row of a site, the first one included."""
    seen: dict[str, int] = defaultdict(int)
    kept = []
    for row in rows:
        site = row.get("site", "")
        if seen[site] % every == 0:
            kept.append(row)
        seen[site] += 1
    return kept


def of_middle_size(rows: Iterable[Row]) -> list[Row]:
    """Return the rows of the site that has as many larger ones beside it as smaller ones."""
    sites: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        sites[row["site"]].append(row)
    ordered = sorted(sites.values(), key=len)
    return ordered[len(ordered) // 2]


def write(path: Path, rows: list[Row]) -> None:
    """Write rows, and say how many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    print(f"{path}: {len(rows)} records")


def public_texts(data: Path) -> list[Row]:
    """Return some public texts, evenly."""
    rows = [{"text": str(row["text"])} for row in read(data / "pretrain_en" / "train.jsonl.gz")]
    return rows[:: max(1, len(rows) // PUBLIC_TEXTS)][:PUBLIC_TEXTS]


def prepare(task: str, data: Path, out: Path, every: int) -> None:
    """Write one task's files."""
    source = SOURCES[task]
    folder = data / source.name
    train = [row for row in read(folder / "train.jsonl.gz") if source.fits(row)]
    test = [row for row in read(folder / "test.jsonl.gz") if source.fits(row)]
    parts = {
        back: [source.record(row) for row in train if kept_back(source.group(row)) is back]
        for back in (False, True)
    }
    kept = thinned(parts[False], every)
    write(out / task / "train.jsonl", kept)
    write(out / task / "choose.jsonl", parts[True])
    if task == "medquad":
        write(out / task / "alone.jsonl", of_middle_size(kept))
        write(out / "public.jsonl", public_texts(data))
    # The last one: where it is, all are.
    write(out / task / "test.jsonl", [source.record(row) for row in test])


def main() -> None:
    """Write all tasks' files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--every", type=int, default=1)
    arguments = parser.parse_args()
    data = Path(os.environ.get("FEDLLM_DATA", HERE / "../../../shared/data"))
    for task in SOURCES:
        prepare(task, data, arguments.out, arguments.every)


if __name__ == "__main__":
    main()
