"""From rows to ranking events: all rows with one prompt and one context are one record.

So whatever comes behind, from sampling to the ledger, takes an event for what it is: a record by
itself. No pair of it is drawn, clipped, held out or charged apart from the others.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from fedllm.config import DataSection
from fedllm.data.rankings import Ranking, event_of, ranking_of_row, together
from fedllm.data.records import Record, RowProblems, cap_records_per_unit
from fedllm.data.values import BadValueError

_REMEDY = "correct these rows or take them out of the source; no row is dropped silently"


def rows_of(data: DataSection) -> DataSection:
    """Return how rows are read: all of a person's, of which events are made before any is left."""
    return data.model_copy(update={"max_records_per_unit": sys.maxsize})


def events(rows: Sequence[Record], most: int) -> list[Record]:
    """Put rows together into ranking events, in the order in which these came up.

    Rows of different persons or sites are never one event.

    Parameters
    ----------
    rows : sequence of Record
        As read: see `fedllm.data.rankings.ranking_of_row`.
    most : int
        Rows of one event, and events of one person, beyond this number are left out, as
        `cap_records_per_unit` says.

    Raises
    ------
    DataError
        If a row says nothing or contradicts itself: names file, row, field and remedy.
    """
    problems = RowProblems()
    together_with: dict[tuple[str | None, str | None, str], list[Record]]
    together_with = defaultdict(list)
    for row in rows:
        try:
            ranking = ranking_of_row(row.values, row.columns or {})
        except BadValueError as error:
            problems.add(row.where, str(error), error.remedy or _REMEDY)
            continue
        together_with[row.unit, row.site, event_of(ranking)].append(row)
    problems.raise_if_any()
    found = [_event(own, most) for own in together_with.values()]
    return cap_records_per_unit(found, most)


def _event(rows: Sequence[Record], most: int) -> Record:
    kept = cap_records_per_unit([replace(row, unit="one event") for row in rows], most)
    ranking = together([ranking_of_row(row.values, row.columns or {}) for row in kept])
    # More rows of it make no other event of it: what was held out stays so.
    return replace(rows[0], values=ranking.written(), about=event_of(ranking))


def disputed(records: Sequence[Record]) -> int:
    """Count pairs of answers that were preferred in both ways."""
    return sum(Ranking.read_back(record.values).disputed for record in records)
