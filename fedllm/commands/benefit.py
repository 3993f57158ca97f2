"""``fedllm benefit``: what each site of a simulation gains."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fedllm.commands import options
from fedllm.words import safe, table

if TYPE_CHECKING:
    from fedllm.personal.benefit import Benefit, Difference


def benefit(
    run: Path = typer.Argument(metavar="RUN", help="The folder of a finished simulation."),
    json_output: bool = options.JSON,
) -> None:
    """Compare what each site of a simulation gains.

    Its own model, the shared one, and the shared one with a layer of the site's own, which is
    trained on the site's records without noise and would stay there. Measured on the records that
    the run held back at each site (evaluation.every); a run that began with another's adapter
    (model.start) has none that are new to the model. At a deployed site: `fedllm client
    personalise`.
    """
    from rich.console import Console

    from fedllm.personal.comparing import compare_simulated
    from fedllm.runs.record import require_run, require_trained
    from fedllm_client.dividing import divide

    require_run(run)
    require_trained(run)
    console = Console(stderr=True)
    with console.status("loading the model") as status:
        found = compare_simulated(run, divide, lambda site: status.update(f"site {safe(site)}"))
    if json_output:
        print(found.model_dump_json(indent=2))
        return
    print_benefit(found)
    overall = found.over_the_better
    worst = min(found.sites, key=lambda site: site.over_the_better.mean)
    print(
        f"own layer over the better of the other two: {_difference(overall)} on the mean of "
        f"{len(found.sites)} sites; least at {worst.site}: {_difference(worst.over_the_better)}"
    )


def print_benefit(found: Benefit) -> None:
    """Print a comparison, one line a site."""
    from rich.console import Console

    rows = table(
        "Site", "Trained on", "Held out", "Alone", "Shared", "Own layer", "Own layer over shared"
    )
    for site in found.sites:
        rows.add_row(
            safe(site.site),
            str(site.trained),
            str(site.held_out),
            *(f"{value:.3f}" for value in (site.alone, site.shared, site.own)),
            _difference(site.own_over_shared),
        )
    print(f"{found.measure} ({found.better} is better), 95% intervals over held-out units")
    Console().print(rows)


def _difference(found: Difference) -> str:
    return f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f})"
