"""What somebody asked for, and a first look at the records with that in mind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedllm.config import Task
from fedllm.config.locations import resolve_location
from fedllm.errors import ConfigError
from fedllm.starting.checking import check_there
from fedllm.starting.guessing import Guess, guess
from fedllm.starting.looking import Sample, Source, look
from fedllm.starting.profiles import Profile, profiles_of
from fedllm.starting.writing import run_name
from fedllm.visible import quoted

NONE = "-"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What somebody asked for; what is none is guessed.

    Attributes
    ----------
    data : str
        Path, pattern or URL, as it was given.
    out : Path
        The file that is written.
    task : str, optional
        As in a run's ``task``.
    given : mapping of str to str
        Columns by role, "unit" and "site" among them; "-" for none of these two.
    sites : int, optional
        Simulated ones.
    epsilon : float, optional
        Of the run, or of a site's account.
    model, name : str, optional
        As in ``model.path`` and ``name``.
    test : Path, optional
        Public test records.
    hold_out : bool
        Whether records are put aside where there are none.
    table, query : str, optional
        Of a database.
    for_site : bool
        Whether a site's policy is wanted.
    force : bool
        Whether files that are there are written over.
    """

    data: str = field(repr=False)
    out: Path
    task: Task | None = None
    given: Mapping[str, str] = field(default_factory=dict)
    sites: int | None = None
    epsilon: float | None = None
    model: str | None = None
    test: Path | None = None
    hold_out: bool = True
    table: str | None = None
    query: str | None = None
    name: str | None = None
    for_site: bool = False
    force: bool = False

    @property
    def location(self) -> str:
        """Where the records are, variables filled in."""
        return resolve_location(self.data, Path.cwd(), "DATA")

    @property
    def parts(self) -> tuple[Path, Path]:
        """Where records for training and for testing are written."""
        stem = self.name or run_name(Path(self.location).name.partition(".")[0])
        folder = self.out.parent
        return folder / f"{run_name(stem)}-train.jsonl", folder / f"{run_name(stem)}-test.jsonl"


def prepare(wanted: Wanted) -> None:
    """Refuse what would be written over, before anything is read.

    Raises
    ------
    ConfigError
        Names the file.
    """
    if wanted.name is not None and wanted.name != run_name(wanted.name):
        raise ConfigError(
            f"no run can be called {quoted(wanted.name)}",
            f"take for example {run_name(wanted.name)}",
        )
    if wanted.force:
        return
    for path in [wanted.out, *(wanted.parts if splits(wanted) else ())]:
        if path.exists():
            raise ConfigError(
                f"{path} is there already", "name another file with --out, or add --force"
            )


def splits(wanted: Wanted) -> bool:
    """Tell whether records are put aside."""
    return wanted.hold_out and wanted.test is None and "://" not in wanted.location


def look_at(wanted: Wanted) -> tuple[Sample, dict[str, Profile], Guess]:
    """Look at the source, and guess.

    Raises
    ------
    DataError
        If it cannot be read, or no task could be learned from it.
    """
    source = Source(wanted.location, _query(wanted))
    sample = look(source)
    check_there({r: c for r, c in wanted.given.items() if c != NONE}, sample)
    profiles = profiles_of(sample.columns, sample.rows)
    return sample, profiles, guess_again(wanted, profiles, wanted.task)


def guess_again(wanted: Wanted, profiles: Mapping[str, Profile], task: Task | None) -> Guess:
    """Guess the columns of a task, as far as nobody named them."""
    known = {role: column for role, column in wanted.given.items() if column != NONE}
    found = guess(profiles, task, known)
    if wanted.sites is not None and "site" not in known:
        found = replace(found, site=None)
    nobody, nowhere = (wanted.given.get(role) == NONE for role in ("unit", "site"))
    return replace(found, unit=None if nobody else found.unit, site=None if nowhere else found.site)


def _query(wanted: Wanted) -> str | None:
    if "://" not in wanted.location:
        if wanted.table or wanted.query:
            raise ConfigError(
                "--table and --query are of a database, and DATA is a file", "leave them out"
            )
        return None
    if wanted.query and wanted.table:
        raise ConfigError("--table and --query say the same", "give one of them")
    if wanted.query:
        return wanted.query
    from fedllm.data.sql import table_names

    table = wanted.table
    if table is None:
        names = table_names(wanted.location)
        if len(names) != 1:
            shown = ", ".join(quoted(name) for name in names[:20]) or "none"
            raise ConfigError(
                f"the database has {len(names)} tables", f"name one with --table: {shown}"
            )
        (table,) = names
        parts = [table]
    else:
        parts = table.split(".")
    table = ".".join('"' + part.replace('"', '""') + '"' for part in parts)
    return f"SELECT * FROM {table}"  # noqa: S608
