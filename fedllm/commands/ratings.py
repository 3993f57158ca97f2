"""What ``fedllm rate`` shows of ratings that are there: how far raters agree, and a run's file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedllm.errors import ConfigError
from fedllm.visible import visible

if TYPE_CHECKING:
    from fedllm.rating.agreement import Agreement
    from fedllm.rating.store import Rating

_DISPUTED = 10


def _read(files: Sequence[str]) -> list[Rating]:
    from fedllm.data.readers import data_files
    from fedllm.rating.store import latest, read_ratings

    return latest(read_ratings(path for name in files for path in data_files(name)))


def _require_no_source(files: Sequence[str], out: Path) -> None:
    """Refuse to write over what raters said, under whatever name, or over what they saw."""
    from fedllm.data.readers import data_files
    from fedllm.rating.answers import answers_beside

    for path in (path for name in files for path in data_files(name)):
        for kept in (path, answers_beside(path)):
            if out.exists() and kept.exists() and out.samefile(kept):
                raise ConfigError(
                    f"--export {visible(str(out))} is {visible(str(kept))}, which would be lost",
                    "name another file with --export",
                )


def export_ratings(files: Sequence[str], out: Path, consensus: bool, json_output: bool) -> None:
    """Write the preference file of a run, and say what is in it.

    Raises
    ------
    ConfigError
        If ``out`` is one of ``files``, or the answers beside one.
    """
    from fedllm.rating.export import preference_rows
    from fedllm.serving.lines import write_lines

    _require_no_source(files, out)
    ratings = _read(files)
    rows = write_lines(preference_rows(ratings, consensus), out)
    told = {
        "rows": rows,
        "ranked": sum(one.state == "ranked" for one in ratings),
        "skipped": sum(one.state == "skipped" for one in ratings),
        "undecided": sum(one.is_undecided for one in ratings),
        "prompts": len({one.unit for one in ratings if one.state == "ranked"}),
    }
    if json_output:
        print(json.dumps({"file": str(out), **told}))
        return
    print(f"{visible(str(out))}: {rows} rows of {told['prompts']} prompts, which are the units")
    if told["skipped"] or told["undecided"]:
        print(
            f"without what prefers nothing: {told['skipped']} skipped, and {told['undecided']} "
            "rankings in which all answers are equally good"
        )


def compare_raters(files: Sequence[str], json_output: bool) -> None:
    """Show how far raters agree, and on which prompts they do not."""
    from fedllm.rating.agreement import agreement

    found = agreement(_read(files))
    if json_output:
        print(json.dumps(_plain(found), indent=2, ensure_ascii=False))
    else:
        _print_agreement(found)


def _plain(found: Agreement) -> dict[str, Any]:
    """Return what is shown as plain values, without a text of the site's."""
    from fedllm.rating.export import aligned
    from fedllm.rating.rankings import ranking_text

    return {
        "alpha": found.alpha,
        "interval": found.interval,
        "shared_prompts": found.shared,
        "raters": [vars(rater) for rater in found.raters],
        "prompts": [
            {
                "row": one.group[0].row,
                **({} if one.group[0].id is None else {"id": one.group[0].id}),
                "disagreement": one.disagreement,
                "rankings": {
                    rating.rater: ranking_text(ranks)
                    for rating, ranks in zip(one.group, aligned(one.group), strict=True)
                },
            }
            for one in found.disputed
        ],
    }


def _print_agreement(found: Agreement) -> None:
    from rich.console import Console

    from fedllm.words import safe, table

    console = Console()
    console.print(_alpha_words(found), highlight=False)
    raters = table("Rater", "Ranked", "Skipped", "Ties", "Differs", "Shown first is best")
    for one in found.raters:
        first = f"{_percent(one.first_best)} (by chance {_percent(one.by_chance)})"
        counts = (str(one.ranked), str(one.skipped), _percent(one.ties))
        raters.add_row(safe(one.name), *counts, _percent(one.disagreement), first)
    console.print(raters)
    differing = [one for one in _plain(found)["prompts"] if one["disagreement"] > 0]
    if differing:
        prompts = table("Row", "Id", "Differs", "Rankings")
        for one in differing[:_DISPUTED]:
            rankings = "\n".join(f"{safe(k)}: {v}" for k, v in one["rankings"].items())
            name = safe(str(one.get("id", "")))
            prompts.add_row(str(one["row"]), name, _percent(one["disagreement"]), rankings)
        console.print(prompts)
    more = len(differing) - _DISPUTED
    if more > 0:
        print(f"and {more} more prompts on which raters differ (--json has all)")


def _alpha_words(found: Agreement) -> str:
    if found.alpha is None:
        return (
            "no agreement can be told: no two raters ranked the same answers, or nobody told two "
            "apart"
        )
    interval = found.interval
    within = f", 95% interval {interval[0]:.2f} to {interval[1]:.2f}" if interval else ""
    return (
        f"Krippendorff's alpha {found.alpha:.3f}{within}, over {found.shared} prompts that at "
        "least two raters ranked (1: all agree, 0: as by chance)"
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
