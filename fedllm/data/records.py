"""One private record, and the collector of rows that cannot become one."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fedllm.errors import DataError

_SHOWN_PROBLEMS = 5


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a data source, with its texts by role.

    Attributes
    ----------
    values : Mapping of str to str
        The roles that the task reads, such as "text" and "label"; never empty, always valid
        Unicode.
    unit : str, optional
        The person the record belongs to, when ``data.unit`` is set, or what else its task
        protects as one; none: the record by itself.
    site : str, optional
        The natural site, when ``data.site`` is set.
    origin : str
        Where the record stands, as "train.jsonl.gz:17": the line of a text file, the row
        of a Parquet file or of a query's result.
    row : int
        Number of the row there, from 1; 0 where nothing was read.
    columns : Mapping of str to str, optional
        Which column each role was read from, where it was read; one object for a source.
    group : str, optional
        What the record is of, when ``data.group`` is set and names it.
    about : str, optional
        What stays the same where its values may grow, as of a record that is made of several rows;
        none: all of its values.
    """

    # Private: left out of repr so that no log or traceback shows them.
    values: Mapping[str, str] = field(repr=False)
    unit: str | None = field(repr=False)
    site: str | None = field(repr=False)
    origin: str
    row: int = field(default=0, repr=False, compare=False)
    columns: Mapping[str, str] | None = field(default=None, repr=False, compare=False)
    group: str | None = field(default=None, repr=False)
    about: str | None = field(default=None, repr=False, compare=False)

    @property
    def where(self) -> str:
        """Name the row as errors of reading do: file, row, and line where it is another."""
        if not self.row:
            return self.origin
        source, _, number = self.origin.rpartition(":")
        line = "" if number == str(self.row) else f" (line {number})"
        return f"{source} row {self.row}{line}"

    def canonical(self) -> bytes:
        """Return bytes that depend on ``values`` alone, for keyed fingerprints.

        UTF-8 JSON with sorted keys and no white space: equal for equal values and
        different for different ones, whatever file, row or order they came from.
        """
        text = json.dumps(
            dict(self.values), ensure_ascii=False, sort_keys=True, separators=(",", ":")
        )
        return text.encode()


class RowProblems:
    """Counts the rows that cannot be used and keeps the first few for one error."""

    def __init__(self) -> None:
        self.count = 0
        self._shown: list[str] = []
        self._remedies: dict[str, None] = {}

    def add(self, where: str, problem: str | Callable[[], str], remedy: str) -> None:
        """Note one bad row; none of the three texts may hold a value of the row.

        A problem that takes time to word is worded only if it is shown.
        """
        self.count += 1
        if len(self._shown) < _SHOWN_PROBLEMS:
            words = problem if isinstance(problem, str) else problem()
            self._shown.append(f"  {where}: {words}")
            self._remedies[remedy] = None

    def raise_if_any(self) -> None:
        """Refuse the whole source if a single row was bad.

        Raises
        ------
        DataError
            Lists the first five bad rows and the number of all of them.
        """
        if self.count:
            raise DataError(self.text("cannot be used"), "; ".join(self._remedies))

    def text(self, what: str) -> str:
        """Say how many rows there are of which ``what`` is true, and list the first five."""
        head = f"{self.count} row{'s' if self.count > 1 else ''} {what}:"
        hidden = self.count - len(self._shown)
        more = [f"  and {hidden} more"] if hidden else []
        return "\n".join([head, *self._shown, *more])


def cap_records_per_unit(records: Sequence[Record], limit: int) -> list[Record]:
    """Keep at most ``limit`` records of each person.

    Kept are the records whose SHA-256 of `Record.canonical` is smallest. The choice looks
    at that person's own records only and not at the order of the file, so neither a
    re-export nor another person's records change it. The kept records stay in order.

    Parameters
    ----------
    records : sequence of Record
        Records without a ``unit`` are all kept.
    limit : int
        Records kept of one person, at least 1.
    """
    by_unit: dict[str, list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        if record.unit is not None:
            by_unit[record.unit].append(index)
    left_out: set[int] = set()
    for indices in by_unit.values():
        if len(indices) > limit:
            ranked = sorted(indices, key=lambda i: hashlib.sha256(records[i].canonical()).digest())
            left_out.update(ranked[limit:])
    return [record for index, record in enumerate(records) if index not in left_out]
