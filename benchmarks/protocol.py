"""What a round of the protocol costs: CPU a site and round by phase, and bytes, as cohorts grow.

Drives the shipped classes through whole rounds: `Site`, `Authority`, `run_round`, messages written
and read again, masks, encryption, ledgers, and the sum opened and compared with what was added up.
Training alone is left out, and with it noise and the accountant: a stand-in returns a vector. So
whatever the protocol is at a commit, this measures it; ``--against PATH`` does the same with the
code of another checkout in a process of its own, and prints how many times ours it costs.

Up to ``--whole`` sites (10) everything is done in full. In larger cohorts five sites do all their
work, on the real messages of the whole cohort, and theirs are the figures of a site; so is all
work of coordinator and authority. The other sites really take part, but they believe signatures
unseen, and leave out the masks that they share with each other, which cancel in any case. Where a
commit derives masks by other functions than these know, they leave out nothing. It is the first
round of a run, in which a site checks the entries of all that it counts on. What a process
remembers of an attempt, a site that is measured remembers by itself.

CPU time of the process, median of the sites that were measured; ledgers lie in memory where
/dev/shm is there. Joining, once a run, is not counted. The peer of bytes is fp32 in the clear.

    OMP_NUM_THREADS=1 python benchmarks/protocol.py [--sites 10 100 1000] [--lengths 10k 30k 100k]
        [--large] [--whole 10] [--against CHECKOUT] [--json PATH] [--quick]

``--large`` adds 5,000 sites at 30k values.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LENGTHS = {"1k": 1_000, "10k": 10_000, "30k": 30_000, "100k": 100_000, "1M": 1_000_000}
# A million values take a hundred sites minutes, and a thousand hours.
MOST_SITES = {"1M": 100}
LARGE = ("30k", 5000)
SITE = ("draw", "order, check", "ledger", "masks", "encryption", "settle", "unmask", "other")
AUTHORITY = ("open", "open sum")


def cells(options: argparse.Namespace) -> list[tuple[str, int]]:
    """Return the lengths and cohorts to measure."""
    found = [
        (length, sites)
        for length in options.lengths
        for sites in options.sites
        if sites <= MOST_SITES.get(length, sites)
    ]
    return [*found, LARGE] if options.large else found


def measured(cell: tuple[str, int], whole: int) -> dict[str, Any] | None:
    """Measure one cell; None where the code refuses such a cohort."""
    from protocol_round import measure

    from fedllm.errors import ConfigError

    name, sites = cell
    try:
        found = measure(sites, LENGTHS[name], None if sites <= whole else 5)
    except ConfigError as error:
        print(f"{name} values, {sites} sites: refused: {error.message}", file=sys.stderr)
        return None
    return {"values": name, "length": LENGTHS[name], "sites": sites, **found}


def other(checkout: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the same with another checkout's code.

    Raises
    ------
    SystemExit
        If it cannot be run.
    """
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "figures.json"
        roots = [checkout, checkout / "clients", checkout / "server"]
        command = [sys.executable, __file__, "--json", str(out), "--code", str(checkout)]
        command += ["--whole", str(options.whole), "--sites", *map(str, options.sites)]
        command += ["--lengths", *options.lengths, *(["--large"] if options.large else [])]
        where = os.pathsep.join(str(root.absolute()) for root in roots)
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": where}, stdout=subprocess.PIPE, check=False
        )
        if done.returncode:
            raise SystemExit(f"the bench does not run with the code of {checkout}")
        return list(json.loads(out.read_text()))


def require_code(checkout: Path) -> None:
    """Refuse to measure other code than was asked for.

    Raises
    ------
    SystemExit
        If the package that is imported lies elsewhere.
    """
    import fedllm

    found = Path(str(fedllm.__file__)).resolve()
    if not found.is_relative_to(checkout.resolve()):
        raise SystemExit(f"{found} was imported, which is not of {checkout}")


def slope(rows: Sequence[dict[str, Any]], key: str) -> float:
    """Return the exponent with which a round's CPU grows in ``key``, by least squares of logs."""
    x = [math.log(row[key]) for row in rows]
    y = [math.log(row["round_ms"]) for row in rows]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - mean_x) ** 2 for a in x)


def exponents(rows: list[dict[str, Any]]) -> list[str]:
    """Say how the CPU of a whole round, all parties together, grows."""
    found = []
    for values in dict.fromkeys(row["values"] for row in rows):
        same = [row for row in rows if row["values"] == values]
        for least in (0, 100):
            some = [row for row in same if row["sites"] >= least]
            if len(some) > 1:
                ends = f"{some[0]['sites']:,} to {some[-1]['sites']:,} sites"
                found.append(f"{values} values, {ends}: exponent {slope(some, 'sites'):.2f}")
    for sites in dict.fromkeys(row["sites"] for row in rows):
        same = [row for row in rows if row["sites"] == sites]
        if len(same) > 1:
            ends = f"{same[0]['values']} to {same[-1]['values']} values"
            found.append(f"{sites:,} sites, {ends}: exponent {slope(same, 'length'):.2f}")
    return list(dict.fromkeys(found))


def table(rows: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> str:
    """Return all figures as one Markdown table."""
    heads = ["values", "sites", *SITE, "a site", *AUTHORITY, "coordinator", "in all"]
    heads += ["kB down", "kB up", "up, times fp32"] + (["other / this"] if theirs else [])
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        count = row["sites"]
        shown = [row["values"], f"{count:,}"]
        shown += [f"{row['site_ms'].get(phase, 0.0):.2f}" for phase in SITE]
        shown.append(f"{sum(row['site_ms'].values()):.2f}")
        shown += [f"{row['authority_ms'].get(phase, 0.0) / count:.2f}" for phase in AUTHORITY]
        shown += [f"{row['coordinator_ms'] / count:.2f}", f"{row['round_ms'] / count:.2f}"]
        shown += [f"{row['bytes_down'] / 1e3:.1f}", f"{row['bytes_up'] / 1e3:.1f}"]
        shown.append(f"{row['bytes_up'] / (4 * row['length']):.2f}")
        if theirs:
            peers = [o for o in theirs if (o["values"], o["sites"]) == (row["values"], count)]
            shown.append(f"{peers[0]['round_ms'] / row['round_ms']:.2f}" if peers else "refused")
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sites", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--lengths", nargs="+", choices=LENGTHS, default=["10k", "30k", "100k"])
    parser.add_argument("--large", action="store_true", help="5,000 sites at 30k values, too")
    parser.add_argument("--whole", type=int, default=10, help="largest cohort done in full")
    parser.add_argument("--against", type=Path, help="another checkout, to compare with")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="three and seven sites, 1k values")
    parser.add_argument("--code", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.sites, options.lengths, options.whole = [3, 7], ["1k"], 3
    if options.code:
        require_code(options.code)
    rows = [row for cell in cells(options) if (row := measured(cell, options.whole))]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")
    theirs = other(options.against, options) if options.against else []
    print("milliseconds of CPU a site and round; authority and coordinator divided by the sites;")
    print(f"from {options.whole + 1} sites on measured at five of them, see --help and the file")
    print(table(rows, theirs))
    print("\nCPU of a whole round, all parties together:")
    print("\n".join(exponents(rows)))


if __name__ == "__main__":
    main()
