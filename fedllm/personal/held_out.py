"""Whether the records that are held out now are new to a shared model.

Held out of the run is not enough: the run may have begun with the adapter of one that trained on
them, and at a site the handed-over ``run.toml`` may say another share than the site was asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedllm.config import to_toml
from fedllm.config.task import smallest_unit
from fedllm.data.records import Record
from fedllm.errors import ConfigError
from fedllm.federation.protocol.terms import shared_config
from fedllm.federation.protocol.wire import digest
from fedllm.federation.site.files import SiteFiles
from fedllm.identity.kits import Kit
from fedllm.privacy.ledger.audit import read_state
from fedllm.privacy.ledger.state import LedgerState
from fedllm.runs.lineage import ancestors, may_have_trained, names
from fedllm.serving.released import Released

_UNKNOWN = "a run that is not known"


def holds_back(released: Released) -> bool:
    """Tell whether sites kept records out of training in the run itself."""
    return bool(released.config.evaluation.every)


def require_new_in_simulation(released: Released) -> None:
    """Refuse a simulation that began with an earlier run's adapter.

    Raises
    ------
    ConfigError
        Names the earlier runs.
    """
    if seen := may_have_trained(ancestors(released.about)[1:], released.config, simulated=True):
        raise ConfigError(
            f"the run began with an adapter that goes back to {names(seen, _UNKNOWN)}, which may "
            "have trained on the records held out now: they are no new records to the shared "
            "model, and it would look better than it is",
            "compare a run that began untrained (without model.start); the sites of a simulation "
            "hold out other records than those of any other",
        )


def why_not_new(released: Released, kit: Kit, records: Sequence[Record]) -> str:
    """Say why records held out at a deployed site may not be new to the model; "" if they are.

    What the site itself took part in, its ledger says. Of a run in it, how much was held out is
    compared by the digest of its configuration; of those before it the coordinator's word is taken.

    Raises
    ------
    FedllmError
        If the ledger was changed.
    """
    if not holds_back(released):
        return "the run held no records back (evaluation.every)"
    path = SiteFiles.of_kit(kit.folder).ledger
    if not path.exists():
        # It is made in a site's first run.
        return ""
    ledger = read_state(path, kit.identity.public_bytes())
    run = str(released.about.get("run_id", ""))
    return _why_not_in_run(released, ledger, run, records) or _why_not_before(released, ledger, run)


def _why_not_in_run(
    released: Released, ledger: LedgerState, run: str, records: Sequence[Record]
) -> str:
    units = {charge.unit for charge in ledger.reservations.values() if charge.run == run}
    if not units:
        return _carried(ledger, run)
    # As sites are sent it.
    stated = digest(to_toml(shared_config(released.config)))
    if ledger.configs.get(run) != stated:
        return (
            "the run.toml that was handed over is not the configuration that this site's ledger "
            "names for the run, or another version of fedllm wrote one of the two: which records "
            "were held out is not certain"
        )
    persons = any(record.unit is not None for record in records)
    if units != {"person" if persons else smallest_unit(released.config.task)}:
        return (
            "the policy names other units (data.unit) than in the run: other records would be "
            "held out now"
        )
    return ""


def _why_not_before(released: Released, ledger: LedgerState, run: str) -> str:
    taken = {charge.run for charge in ledger.reservations.values()}
    taken = taken.union(*(carried.runs for carried in ledger.carried)) - {run}
    unknown = _forgets_runs(ledger)
    if not taken and not unknown:
        return ""
    earlier = [
        one
        for one in ancestors(released.about)[1:]
        if unknown or one.run_id in taken or not one.run_id
    ]
    seen = may_have_trained(earlier, released.config, simulated=False)
    if not seen:
        return ""
    return (
        f"the run began with an adapter that goes back to {names(seen, _UNKNOWN)}, which may have "
        "trained on the records held out now"
    )


def _carried(ledger: LedgerState, run: str) -> str:
    if not _forgets_runs(ledger) and not any(run in one.runs for one in ledger.carried):
        return ""
    return (
        "this site's ledger was carried over, and the new one does not say what the site was asked "
        "for in the run"
    )


def _forgets_runs(ledger: LedgerState) -> bool:
    """Tell whether spending was carried over without the runs that it was spent in."""
    return not all(carried.runs for carried in ledger.carried)
