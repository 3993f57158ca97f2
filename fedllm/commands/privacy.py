"""``fedllm privacy``: see what training will cost before anyone trains."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import typer

from fedllm.commands import assumptions, options, plan_quality
from fedllm.commands.help import CommandGroup
from fedllm.config import RunConfig, load_run_config
from fedllm.errors import ConfigError, RefusedError

app = CommandGroup(help="Plan privacy budgets.", no_args_is_help=True)

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class PlanRow:
    """One line of the plan.

    Attributes
    ----------
    records : int
        Records, or persons, at a site.
    sampling_rate : float
        Probability of each to be in a step.
    rounds, steps : int
        Of the whole run; ``steps`` are the noised sums that a unit is part of.
    noise_multiplier : float
        Of each step.
    epsilon : float, optional
        For those who see opened sums and the model; None where it is infinite.
    colluders_epsilon : float, optional
        For everyone else colluding against the site; None where it is no other.
    adaptive_epsilon : float, optional
        At a site whose ceiling ``epsilon`` is, whatever a coordinator chose the charges by; None
        where it is infinite.
    """

    records: int
    sampling_rate: float
    rounds: int
    steps: int
    noise_multiplier: float
    epsilon: float | None
    colluders_epsilon: float | None = None
    adaptive_epsilon: float | None = None


@app.callback()
def _group() -> None:
    """Plan privacy budgets."""


@app.command()
def plan(
    context: typer.Context,
    run: Path | None = typer.Argument(
        None, metavar="[RUN.toml]", help="Plan this run, as it is configured."
    ),
    overrides: list[str] = options.SET,
    epsilon: float = typer.Option(
        8.0, help="The privacy loss that the whole run may cause; smaller protects more."
    ),
    delta: float = typer.Option(
        1e-5, help="The small probability that is left outside that bound."
    ),
    records: str = typer.Option(
        "300,1000", metavar="NUMBERS", help="Numbers of records at a site, separated by commas."
    ),
    batch: int = typer.Option(64, help="Records in a batch, on average."),
    rounds: str = typer.Option(
        "10,50", metavar="NUMBERS", help="Numbers of rounds, separated by commas."
    ),
    steps: int = typer.Option(10, help="Training steps that a site takes in a round."),
    noise: str = typer.Option(
        "",
        metavar="NUMBERS",
        help="Amounts of noise (in clipping norms), separated by commas: show the epsilon of each, "
        "and find no noise for --epsilon.",
    ),
    quality: bool = typer.Option(
        False,
        "--quality",
        help="Also predict how much of what training gains is kept under the noise, and recommend "
        "settings (classification; a guide fitted on public runs, see docs/recipes.md).",
    ),
    sites: int = typer.Option(10, help="Sites that take part, for --quality without a RUN.toml."),
    json_output: bool = options.JSON,
    plot: Path | None = typer.Option(
        None, help="Also draw the plan into this file (.svg, .png or .pdf)."
    ),
) -> None:
    """Show the noise or the epsilon of runs to come.

    For each number of records and of rounds: how much noise keeps a run within --epsilon. With
    RUN.toml, what that very run will spend at a site of each size, evaluations included, in the
    eyes of those who see sums and, with shared noise, of everyone else colluding. Ends with all
    that it assumes.
    """
    if run is not None:
        _refuse_beside_a_run(context)
        from fedllm.mechanisms import mechanism_of

        config, sizes = load_run_config(run, overrides), _numbers("--records", records, int)
        if quality:
            plan_quality.require_law(config)
        planned = _rows_of_run(config, sizes)
        qualities = _qualities(config, planned) if quality else []
        neighbours = f"one {config.unit} emptied"
        _show(
            planned,
            config.privacy.delta,
            neighbours,
            json_output,
            plot,
            assumptions.of_run(config, sizes, _given(context, "records")),
            sites=mechanism_of(config).shares,
            qualities=qualities,
        )
        if config.private and not config.encryption.masked and not json_output:
            print(
                "the coordinator can open single updates (encryption without masks); each carries "
                "the whole noise, so that the same epsilon holds against it"
            )
        return
    if overrides:
        raise ConfigError("--set changes a RUN.toml, and none is given", "name the file")
    if quality:
        _plan_recipe(context, (epsilon, delta, sites), (records, rounds), json_output, plot)
        return
    if not (1 <= batch <= _MOST and 1 <= steps <= _MOST):
        raise ConfigError(
            f"--batch and --steps must be at least 1 and at most {_MOST:.0e}",
            "e.g. --batch 64 --steps 10",
        )
    rows = [
        row
        for count in _numbers("--records", records, int)
        for length in _numbers("--rounds", rounds, int)
        for row in _rows(
            epsilon,
            delta,
            (count, min(1.0, batch / count)),
            (length, length * steps),
            _numbers("--noise", noise, float) if noise else (),
        )
    ]
    values = {
        "epsilon": epsilon,
        "delta": delta,
        "records": records,
        "batch": batch,
        "rounds": rounds,
        "steps": steps,
    }
    if noise:
        del values["epsilon"]
    assumed = {name: value for name, value in values.items() if not _given(context, name)}
    taken = assumptions.of_options(assumed)
    _show(rows, delta, "one record emptied", json_output, plot, taken, solved=not noise)


def _qualities(config: RunConfig, rows: Sequence[PlanRow]) -> list[plan_quality.Quality]:
    return [
        plan_quality.predicted(config, row.noise_multiplier, row.sampling_rate, row.records)
        for row in rows
    ]


def _plan_recipe(
    context: typer.Context,
    run: tuple[float, float, int],
    sizes: tuple[str, str],
    json_output: bool,
    plot: Path | None,
) -> None:
    """Plan the run that a file with nothing but these would be."""
    for name in ("batch", "steps", "noise"):
        if _given(context, name):
            raise ConfigError(
                f"--{name} does not go with --quality, which plans a run of the defaults",
                "leave it out, or name a RUN.toml that says it",
            )
    (epsilon, delta, sites), (records, rounds) = run, sizes
    counts = _numbers("--records", records, int)
    lengths = (
        _numbers("--rounds", rounds, int) if _given(context, "rounds") else plan_quality.ROUNDS
    )
    rows: list[PlanRow] = []
    qualities: list[plan_quality.Quality] = []
    for length in lengths:
        config = plan_quality.recipe(epsilon, delta, length, sites)
        planned = _rows_of_run(config, counts)
        rows += planned
        qualities += _qualities(config, planned)
    best = max(qualities, key=lambda one: (one.records, one.kept))
    recommended = plan_quality.settings(
        plan_quality.recipe(epsilon, delta, best.rounds, sites), best.records
    )
    taken = assumptions.of_options(
        {
            name: value
            for name, value in {
                "epsilon": epsilon,
                "delta": delta,
                "sites": sites,
                "records": records,
            }.items()
            if not _given(context, name)
        }
    )[:-2]
    _show(
        rows,
        delta,
        "one record emptied",
        json_output,
        plot,
        [*taken, "classification with the defaults; noise is shared between all sites"],
        sites=sites,
        qualities=qualities,
        recommended=recommended,
    )


# The accountants count no more steps, and no site has as many records.
_MOST = 10**12
_SHOWN_LETTERS = 40
# Gradients are clipped: a sum of so many is never longer.
_BEYOND_USE = (
    "WARNING: a noise multiplier above the records of a batch is beyond use: the noise on every "
    "single value of the model is larger than all that the batch can add. Such a run learns next "
    "to nothing, or stops. Plan a larger epsilon, more records or fewer rounds"
)
_OPEN_TO_CHOICE = (
    "WARNING: so few records in a step, under so little noise, cost far more against a coordinator "
    "that chooses each charge by what it has seen. Sites whose ceiling is no higher than this "
    "epsilon refuse such a run. Plan larger batches or more steps (docs/privacy-accounting.md)"
)


def _open_to_choice(row: PlanRow) -> bool:
    """Whether a site whose ceiling the run uses up would refuse it; see `BudgetGuard`."""
    from fedllm.privacy.accounting.adaptive import adaptive_limit

    if not row.epsilon:
        return False
    return row.adaptive_epsilon is None or row.adaptive_epsilon > adaptive_limit(row.epsilon)


def _show(
    rows: Sequence[PlanRow],
    delta: float,
    neighbours: str,
    json_output: bool,
    plot: Path | None,
    assumed: Sequence[str],
    solved: bool = True,
    sites: int = 1,
    qualities: Sequence[plan_quality.Quality] = (),
    recommended: dict[str, Any] | None = None,
) -> None:
    if json_output:
        beside = {"delta": delta, "neighbours": neighbours, "assumptions": list(assumed)}
        told = [asdict(row) | beside for row in rows]
        for row, more in zip(told, plan_quality.told(qualities) if qualities else (), strict=False):
            row.update(more, **({"recommended": recommended} if recommended else {}))
        print(json.dumps(told, indent=2, allow_nan=False))
    else:
        _print_table(rows, delta, neighbours)
        print("Assumptions:", *assumed, sep="\n- ")
        if any(row.noise_multiplier > row.records * row.sampling_rate * sites for row in rows):
            print(_BEYOND_USE)
        if any(map(_open_to_choice, rows)):
            print(_OPEN_TO_CHOICE)
        if qualities:
            plan_quality.show(qualities, recommended)
    if plot:
        _draw(rows, plot, delta, solved=solved)


def _given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _refuse_beside_a_run(context: typer.Context) -> None:
    for name in ("epsilon", "delta", "batch", "rounds", "steps", "noise"):
        if _given(context, name):
            raise ConfigError(
                f"--{name} does not go with a RUN.toml, which says it itself",
                "change a key of the run with --set, e.g. --set privacy.epsilon=3",
            )


def _rows_of_run(config: RunConfig, sizes: Sequence[int]) -> list[PlanRow]:
    from fedllm.mechanisms import mechanism_of, planned_cost

    mechanism = mechanism_of(config)
    rows = []
    for units in sizes:
        try:
            cost = planned_cost(config, units)
        except RefusedError as error:
            raise RefusedError(
                f"a site of {units} {config.unit}s (--records) would refuse this run: "
                f"{error.message}",
                f"plan for the sizes that sites have, with --records; or {error.remedy}",
            ) from None
        against_all = cost.colluders_epsilon
        rows.append(
            PlanRow(
                units,
                mechanism.sampling_rate(units),
                config.rounds.count,
                config.rounds.count * mechanism.releases_per_round,
                mechanism.needed_noise(units, 1, ()) or 0.0,
                _finite(cost.epsilon),
                None if against_all is None else _finite(against_all),
                None if cost.adaptive_epsilon is None else _finite(cost.adaptive_epsilon),
            )
        )
    return rows


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _numbers(option: str, text: str, kind: type[Number]) -> tuple[Number, ...]:
    try:
        values = tuple(kind(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or not all(0 < value <= _MOST for value in values):
        shown = text if len(text) <= _SHOWN_LETTERS else f"{text[:_SHOWN_LETTERS]}..."
        raise ConfigError(
            f"{option} {shown!r} is not a list of positive numbers up to {_MOST:.0e}",
            "e.g. 300,1000",
        )
    return values


def _rows(
    budget: float,
    delta: float,
    site: tuple[int, float],
    length: tuple[int, int],
    noises: Sequence[float],
) -> list[PlanRow]:
    from fedllm.privacy.accounting.accountants import epsilon
    from fedllm.privacy.accounting.adaptive import adaptive_epsilon
    from fedllm.privacy.accounting.calibration import solve_noise_multiplier
    from fedllm.privacy.accounting.events import PoissonGaussian, fold

    (records, rate), (rounds, steps) = site, length
    rows = []
    for noise in noises or (solve_noise_multiplier(budget, delta, rate, steps),):
        events = [PoissonGaussian(rate, noise, steps)]
        cost = epsilon(events, delta).value
        chosen = adaptive_epsilon(fold(events), delta, cost) if 0 < cost < math.inf else cost
        rows.append(
            PlanRow(records, rate, rounds, steps, noise, _finite(cost), None, _finite(chosen))
        )
    return rows


def _print_table(rows: Sequence[PlanRow], delta: float, neighbours: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from fedllm.privacy.accounting.words import epsilon_text

    colluders = any(row.colluders_epsilon is not None for row in rows)
    table = Table("records", "sampling rate", "rounds", "steps", "noise multiplier", "epsilon")
    if colluders:
        table.add_column("against colluders")
    for row in rows:
        cost = "infinite" if row.epsilon is None else epsilon_text(row.epsilon)
        alone = [epsilon_text(row.colluders_epsilon)] if row.colluders_epsilon is not None else []
        table.add_row(
            str(row.records),
            f"{row.sampling_rate:.4g}",
            str(row.rounds),
            str(row.steps),
            f"{row.noise_multiplier:.4g}",
            cost,
            *alone,
        )
    console = Console()
    console.print(table)
    console.print(f"delta {delta:g}; Poisson sampling; neighbours: {neighbours}")
    most = max(row.records for row in rows)
    if delta * most >= 1:
        console.print(
            f"WARNING: delta {delta:g} is not below 1/{most}: giving one of {most} records away at "
            "random would satisfy it; set a smaller delta"
        )


def _draw(rows: Sequence[PlanRow], path: Path, delta: float, solved: bool) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    lines: dict[tuple[int, float | None], list[PlanRow]] = {}
    for row in rows:
        lines.setdefault((row.records, None if solved else row.noise_multiplier), []).append(row)
    for (records, noise), line in lines.items():
        shown = sorted((row for row in line if row.epsilon is not None), key=lambda r: r.rounds)
        axes.plot(
            [row.rounds for row in shown],
            [row.noise_multiplier if solved else row.epsilon or 0.0 for row in shown],
            marker="o",
            label=f"{records} records" + ("" if noise is None else f", noise {noise:g}"),
        )
    axes.set_xlabel("rounds")
    axes.set_ylabel("noise multiplier" if solved else f"epsilon (delta {delta:g})")
    axes.legend()
    axes.grid(alpha=0.3)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"could not write {path}", "use a writable .svg, .png or .pdf") from error
    finally:
        pyplot.close(figure)
