"""Whether the ledgers of a folder are those that its run tells of, and bear out what it claims.

A ledger that holds can still be the wrong one: left out, exchanged, or there twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from fedllm.audit.findings import Finding
from fedllm.audit.ledgers.claims import Claims, as_epsilon, is_epsilon
from fedllm.audit.ledgers.figures import LedgerAudit, RunAudit
from fedllm.audit.ledgers.judge import above, compare, firm
from fedllm.privacy.accounting.words import epsilon_text
from fedllm.privacy.ledger.audit import read_state
from fedllm.privacy.ledger.entries import TamperedError
from fedllm.privacy.ledger.state import LedgerState
from fedllm.runs import names
from fedllm.visible import visible


@dataclass(frozen=True, slots=True)
class Audited:
    """A ledger that was looked at.

    Attributes
    ----------
    path, folder : Path
        The file, and the folder that was given or found to hold it; none for a file that was
        given by itself.
    state : LedgerState, optional
        What it says; none where it could not be believed.
    found : LedgerAudit
        Its figures.
    """

    path: Path
    folder: Path | None
    state: LedgerState | None
    found: LedgerAudit


def misplaced(ledgers: Sequence[Audited]) -> Iterator[Finding]:
    """Say which files are another ledger than their place promises, and which are there twice."""
    for one in ledgers:
        site = one.state.site if one.state else ""
        # Where runs keep ledgers, a file is called by its site.
        here = one.path.absolute().parent.name == names.LEDGERS
        if site and here and one.path.stem != site:
            text = f"it is the ledger of site {site}: a ledger of {one.path.stem} should stand here"
            yield Finding("critical", str(one.path), visible(text))
    for one, other in combinations([one for one in ledgers if one.state], 2):
        if one.folder == other.folder and one.found.site == other.found.site:
            yield from _twice(one, other)


def _twice(one: Audited, other: Audited) -> Iterator[Finding]:
    """Say what two ledgers of one site and place are to each other."""
    mine, its = one.state, other.state
    if mine is None or its is None:
        return
    where, site = str(other.path), visible(mine.site)
    if mine.public_key != its.public_key:
        if mine.public_key.hex() in its.covered() or its.public_key.hex() in mine.covered():
            return
        text = (
            f"it and {one.path} are two ledgers of {site} with two keys, and neither took over "
            "what the other was charged"
        )
        yield Finding("critical" if one.folder else "warning", where, text)
    elif not _is_beginning(one, other):
        text = f"it and {one.path} are signed with one key of {site} and contradict each other"
        yield Finding("critical", where, text)
    elif one.path.stem != other.path.stem and (one.folder or _two_files(one.path, other.path)):
        text = f"it is the ledger of {site} a second time; the first is {one.path}"
        yield Finding("critical", where, text)
    elif one.path.suffix == other.path.suffix or not one.folder:
        yield Finding("note", where, f"it is the ledger of {site} once more, as {one.path} is")


def _two_files(one: Path, other: Path) -> bool:
    """Tell whether two ledgers that were given one by one, and no exports, lie side by side."""
    return one.suffix == other.suffix == ".sqlite" and one.parent == other.parent


def _is_beginning(one: Audited, other: Audited) -> bool:
    """Tell whether the shorter of two ledgers is how the longer one begins."""
    heads = [(o.state.head.sequence, o) for o in (one, other) if o.state and o.state.head]
    (_, shorter), (_, longer) = sorted(heads, key=lambda pair: pair[0])
    if shorter.state is None or shorter.state.head is None:
        return False
    try:
        read_state(longer.path, anchors=[shorter.state.head])
    except TamperedError:
        return False
    return True


def judge_folder(claims: Claims, ledgers: Sequence[Audited]) -> Iterable[Finding]:
    """Say what a run's folder claims and its ledgers do not bear out.

    Parameters
    ----------
    claims : Claims
        Of the folder.
    ledgers : sequence of Audited
        Those that may belong to it.
    """
    # What cannot be believed is a finding of its own.
    there = {one.state.site if one.state else one.path.stem for one in ledgers}
    lacking = sorted({*claims.sites, *claims.heads} - there)
    for site in lacking:
        told = [
            name
            for name, known in ((names.SUMMARY, claims.sites), (names.HEADS, claims.heads))
            if site in known
        ]
        text = (
            f"its ledger is not among those of {claims.folder}, though {' and '.join(told)} "
            "tell of it: nothing shows what it spent"
        )
        yield Finding("critical", site, visible(text))
    if not claims.run:
        return
    runs = [
        (one, run)
        for one in ledgers
        for account in one.found.accounts
        for run in account.runs
        if run.run == claims.run
    ]
    yield from _uncharged(claims, ledgers, {one.found.site for one, _ in runs})
    if not runs:
        return
    yield from _figures(claims, [run for _, run in runs], complete=not lacking)
    for one, run in runs:
        yield from _site(claims, one.found.site, run)


def _uncharged(claims: Claims, ledgers: Sequence[Audited], charged: set[str]) -> Iterator[Finding]:
    """Say where a site is said to have spent something in the run, and its ledger has nothing."""
    for one in ledgers:
        if one.state is None or one.state.site in charged:
            continue
        site = one.state.site
        if claims.sites.get(site, 0.0) > 0:
            # Under a lost key it may have been charged to an earlier ledger.
            yield Finding(
                "warning" if one.state.carried else "critical",
                f"{site}, run {claims.run}",
                f"{names.SUMMARY} says that it spent epsilon {epsilon_text(claims.sites[site])} in "
                "this run, and its ledger holds no charge of the run",
            )


def _site(claims: Claims, site: str, run: RunAudit) -> Iterator[Finding]:
    subject = f"{site}, run {run.run}"
    if site in claims.rounds_sites:
        who = f"the run's {names.METRICS}"
        said = claims.rounds_sites[site]
        yield from compare(subject, who, said, run.recomputed, run.claimed)
    asked = claims.asked.privacy.epsilon if claims.asked else None
    promised = claims.privacy.get("promised")
    spent = firm(run.recomputed, run.claimed)
    for value, where in ((asked, names.RUN_TOML), (promised, names.SUMMARY)):
        if is_epsilon(value) and above(spent, as_epsilon(value)):
            yield Finding(
                "critical",
                subject,
                f"it spent epsilon {epsilon_text(spent)} in this run; {where} says that "
                f"{epsilon_text(as_epsilon(value))} was asked for",
            )


def _figures(claims: Claims, runs: Sequence[RunAudit], complete: bool) -> Iterator[Finding]:
    """Compare what the summary says of the run as a whole."""
    subject, privacy = str(claims.folder / names.SUMMARY), claims.privacy
    for key, all_found in (
        ("epsilon", [(run.recomputed, run.claimed) for run in runs]),
        ("colluders_epsilon", [(run.colluders, run.colluders_claimed) for run in runs]),
    ):
        value = privacy.get(key)
        if value is None and (key not in privacy or key == "colluders_epsilon"):
            # Only a simulation knows what all others could learn.
            continue
        if value is not None and not is_epsilon(value):
            yield Finding("critical", subject, f"'privacy.{key}' is no epsilon")
            continue
        found, own = max(all_found, key=lambda pair: firm(*pair))
        yield from compare(subject, f"'privacy.{key}'", as_epsilon(value), found, own)
    deltas = sorted({run.delta for run in runs})
    if "delta" in privacy and deltas != [privacy["delta"]]:
        said = ", ".join(f"{delta:g}" for delta in deltas)
        text = f"'privacy.delta' is {privacy['delta']}; the ledgers were charged at {said}"
        yield Finding("critical", subject, visible(text))
    if privacy.get("unit") == "person" and any(run.unit != "person" for run in runs):
        text = "'privacy.unit' is person; ledgers were charged for the protection of single records"
        yield Finding("critical", subject, text)
    rounds, last = claims.summary.get("rounds"), max(run.last_round for run in runs)
    if isinstance(rounds, int) and (last > rounds or (complete and last < rounds)):
        text = f"'rounds' is {rounds}; the last round that the ledgers were charged for is {last}"
        yield Finding("critical", subject, text)
