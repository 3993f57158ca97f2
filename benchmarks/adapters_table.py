"""The tables of `adapters.py`, made from its lines alone."""

from __future__ import annotations

import zlib
from base64 import b64decode
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedllm.files import write_bytes

PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"
DRAWS, PART = 2000, 250
Lines = dict[str, dict[str, Any]]
# What a group of runs has in common; the head's long runs stand apart from its short ones.
Row = tuple[str, int, int]


def report(lines: Lines) -> str:
    """Return all tables, and what each aim comes to."""
    return "\n\n".join(part for data in _names(lines) for part in _of_data(lines, data))


def write_docs(lines: Lines, page: Path = PAGE) -> None:
    """Write the tables into the page, between their marks."""
    for data in _names(lines):
        tables = "\n\n".join(_of_data(lines, data))
        write_block(f"adapters {data}: made by benchmarks/adapters.py", tables, page)


def write_block(mark: str, content: str, page: Path = PAGE) -> None:
    """Write a part of the page that begins with a mark, up to the next end."""
    start, end = f"<!-- {mark} -->", "<!-- end -->"
    before, found, rest = page.read_text().partition(start)
    if not found:
        raise SystemExit(f"{page} has no line {start}")
    text = f"{before}{start}\n\n{content}\n\n{end}{rest.partition(end)[2]}"
    write_bytes(page, text.encode())


def _names(lines: Lines) -> list[str]:
    return list(dict.fromkeys(line["case"]["data"] for line in lines.values()))


def _of_data(lines: Lines, data: str) -> Iterator[str]:
    own = [line for line in lines.values() if line["case"]["data"] == data]
    tests: dict[tuple[float | None, str, int], dict[Row, list[dict[str, Any]]]] = defaultdict(dict)
    for line in own:
        case = line["case"]
        if case["stage"] == "test":
            row = (case["method"], case["rank"], case["setting"]["rounds"])
            tests[case["epsilon"], case["split"], case["records"]].setdefault(row, []).append(line)
    costs = {
        (line["case"]["method"], line["case"]["rank"]): line["record_cpu_s"]
        for line in own
        if line["case"]["stage"] == "cost"
    }
    higher = data == "banking77"
    for (epsilon, split, records), rows in tests.items():
        words = "no privacy" if epsilon is None else f"epsilon {epsilon:g}"
        many = f"{records:,} records" if records else "all records"
        yield _table(f"{words}, {split}, {many}", rows, costs, higher)
    if found := _steps(own):
        yield found


def _table(
    title: str,
    rows: dict[Row, list[dict[str, Any]]],
    costs: dict[tuple[str, int], float],
    higher: bool,
) -> str:
    """Return one table of methods, with paired differences from the head alone."""
    heads = [row for row in rows if row[0] == "head"]
    peer = max(heads, key=lambda row: row[2]) if heads else None
    metric = "accuracy" if higher else "loss"
    against = "head alone" if peer else "`ffa`"
    if peer is None:
        peer = next((row for row in rows if row[0] == "ffa"), None)
    lines = [
        f"**{title}**",
        "",
        f"| method | rank | rounds | seeds | {metric} | less {against} [95%] | values up | MB up "
        "| CPU s | product's time |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row, found in rows.items():
        method, rank, rounds = row
        metrics = [line["metric"] for line in found]
        spread = f" ±{np.std(metrics, ddof=1):.4f}" if len(metrics) > 1 else ""
        first = found[0]
        values = "/".join(map(str, first["values_up"]))
        lines.append(
            f"| {'head alone' if method == 'head' else f'`{method}`'} | {rank} | {rounds} | "
            f"{len(found)} | {np.mean(metrics):.4f}{spread} | "
            f"{difference(found, rows[peer]) if peer and row != peer else ''} | {values} | "
            f"{first['bytes_up'] / 1e6:.1f} | {np.mean([line['cpu_s'] for line in found]):.0f} | "
            f"{_ratio(row, peer, first, rows, costs)} |"
        )
    return "\n".join([*lines, *_pairs(rows)])


def _ratio(
    row: Row,
    peer: Row | None,
    line: dict[str, Any],
    rows: dict[Row, list[dict[str, Any]]],
    costs: dict[tuple[str, int], float],
) -> str:
    """Return the time of all gradients as the product computes them, over the head alone's."""
    if peer is None or row[:2] not in costs or peer[:2] not in costs:
        return ""

    def cost(which: Row, line: dict[str, Any]) -> float:
        setting = line["case"]["setting"]
        steps: float = setting["rounds"] * setting["rate"]
        return steps * costs[which[:2]]

    return f"{cost(row, line) / cost(peer, rows[peer][0]):.2f}"


def _pairs(rows: dict[Row, list[dict[str, Any]]]) -> Iterator[str]:
    """Yield what FedSVD is ahead of both kinds of FFA."""
    of = {row[0]: found for row, found in rows.items() if row[0] != "head"}
    told = [
        f"`{a}` less `{b}`: {difference(of[a], of[b])}"
        for a, b in (
            ("fedsvd", "ffa"),
            ("fedsvd", "ffa_orthonormal"),
            ("ffa_orthonormal", "ffa"),
        )
        if a in of and b in of
    ]
    if told:
        yield ""
        yield "; ".join(told) + "."


def difference(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> str:
    """Return the mean difference of paired runs with its bootstrap interval, in words."""
    mean, low, high = interval(ours, theirs)
    return f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"


def interval(
    ours: list[dict[str, Any]], theirs: list[dict[str, Any]]
) -> tuple[float, float, float]:
    """Return a difference's mean and 95% interval, by drawing seeds and test records anew.

    Pairs are runs of one seed, and of each test record what both say of it.
    """
    by_seed = {line["case"]["seed"]: line for line in theirs}
    pairs = [
        (line, by_seed[line["case"]["seed"]]) for line in ours if line["case"]["seed"] in by_seed
    ]
    if not pairs:
        return float("nan"), float("nan"), float("nan")
    mean = float(np.mean([a["metric"] - b["metric"] for a, b in pairs]))
    sums = np.array([[_read(line, "sums") for line in pair] for pair in pairs])
    counts = np.array([[_read(line, "counts") for line in pair] for pair in pairs])
    drawn = np.concatenate(list(_draws(sums, counts)))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return mean, float(low), float(high)


def _draws(sums: NDArray[np.float64], counts: NDArray[np.float64]) -> Iterator[NDArray[np.float64]]:
    """Yield differences of redrawn seeds and rows; arrays are (seeds, 2, rows)."""
    generator = np.random.default_rng(0)
    seeds, _, rows = sums.shape
    for _ in range(DRAWS // PART):
        weights = generator.multinomial(rows, np.full(rows, 1 / rows), size=PART)
        means = np.einsum("dr,spr->dsp", weights, sums) / np.einsum("dr,spr->dsp", weights, counts)
        ahead = means[:, :, 0] - means[:, :, 1]
        picked = generator.integers(0, seeds, size=(PART, seeds))
        yield np.take_along_axis(ahead, picked, axis=1).mean(axis=1)


def _read(line: dict[str, Any], name: str) -> NDArray[np.float64]:
    kept = zlib.decompress(b64decode(line["scores"][name]))
    return np.frombuffer(kept, dtype="<f4").astype(np.float64)


def _steps(own: list[dict[str, Any]]) -> str:
    """Return what each step of the grid came to on the part of train that was left out."""
    table: dict[tuple[float | None, int, str, int], dict[float, float]] = defaultdict(dict)
    for line in own:
        case = line["case"]
        if case["stage"] == "choose" and case["method"] != "head":
            row = (case["epsilon"], case["records"], case["method"], case["rank"])
            table[row][case["setting"]["adapter"]] = line["metric"]
    if not table:
        return ""
    told = [
        "**Steps, judged on the part of train that was left out (one run each)**",
        "",
        "| epsilon | records | method | rank | step of the adapter: result |",
        "|---|---|---|---|---|",
    ]
    for (epsilon, records, method, rank), found in table.items():
        cells = ", ".join(f"{step:g}: {found[step]:.4f}" for step in sorted(found))
        words = "none" if epsilon is None else f"{epsilon:g}"
        told.append(f"| {words} | {records or 'all'} | `{method}` | {rank} | {cells} |")
    return "\n".join(told)
