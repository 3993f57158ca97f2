"""The comparison from files: at a deployed site, and at all sites of a simulation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedllm.config import RunConfig, SiteModelSection
from fedllm.data.encode import EncodedDataset
from fedllm.data.records import Record, RowProblems
from fedllm.errors import ConfigError, DataError
from fedllm.federation.protocol.evaluating import Holdout
from fedllm.identity.keys import Identity
from fedllm.identity.kits import Kit
from fedllm.personal.benefit import Benefit, SiteBenefit, benefit_of, compare
from fedllm.personal.held_out import holds_back, require_new_in_simulation, why_not_new
from fedllm.personal.own_layer import OwnLayer, fit_own_layer
from fedllm.personal.sealed import own_layer_path, seal_own_layer
from fedllm.runs import names
from fedllm.serving.released import Released, load_released
from fedllm.tasks import task_of

Heard = Callable[[str], None]
_FEWEST_HELD_UNITS = 2
_HOLD_BACK = (
    "set evaluation.every in the next run, such as to rounds.count; sites then keep "
    "evaluation.holdout of their records out of training"
)


@dataclass(frozen=True, eq=False)
class Here:
    """What came of a deployed site's own layer.

    Attributes
    ----------
    benefit : Benefit, optional
        Of this site alone; None where no records are certain to be new to the model.
    layer : OwnLayer
        What was made.
    path : Path
        Where it lies, sealed.
    why_not : str
        Why nothing was compared.
    """

    benefit: Benefit | None
    layer: OwnLayer
    path: Path
    why_not: str = ""


def compare_simulated(
    folder: Path, divided: Callable[[RunConfig], dict[str, list[Record]]], heard: Heard
) -> Benefit:
    """Compare at every site of a simulated run.

    Parameters
    ----------
    folder : Path
        The run's.
    divided : callable
        Deals the run's records to its sites, as the run did.
    heard : callable
        Told what is done now.

    Raises
    ------
    ConfigError
        If the run is not finished, was no simulation, held no records back, or began with an
        earlier run's adapter.
    """
    released = load_released(folder)
    if not holds_back(released):
        raise ConfigError(
            f"the run in {folder} held no records back: the shared model has seen every one, and "
            "would look better than it is",
            _HOLD_BACK,
        )
    require_new_in_simulation(released)
    keys = folder / names.IDENTITIES
    found = []
    for site, records in divided(released.config).items():
        if not (keys / site).is_dir():
            raise ConfigError(
                f"{folder} has no keys of the site '{site}': it is no simulation with ledgers of "
                "its own",
                "give the folder of a simulation that ran without --ledgers",
            )
        heard(site)
        benefit, _ = _at_site(released, records, Identity.load(site, keys / site), site)
        found.append(benefit)
    return benefit_of(released.config.name, _run_id(released), released.model, found)


def compare_here(
    folder: Path, kit: Kit, base: SiteModelSection, records: Callable[[RunConfig], list[Record]]
) -> Here:
    """Make a deployed site's own layer, keep it sealed in the kit, and compare.

    Parameters
    ----------
    folder : Path
        The run as the coordinator handed it over: ``run.toml`` and ``adapter/``.
    base : SiteModelSection
        The site's own copy of the base model, and where it computes.
    records : callable
        Reads the site's records for a run.

    Raises
    ------
    FedllmError
        If the model cannot be loaded, the site's ledger was changed, or there are too few records.
    """
    released = load_released(folder, base.path, base.device or "cpu")
    own_records, benefit = records(released.config), None
    why_not = why_not_new(released, kit, own_records)
    if not why_not:
        benefit, layer = _at_site(released, own_records, kit.identity, kit.identity.name)
    else:
        layer = fit_own_layer(released.model, _encoded(released, own_records))
    sha256 = str(released.about["adapter"])
    path = own_layer_path(kit.folder, sha256)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    seal_own_layer(layer, path, kit.identity, released.model, sha256)
    if benefit is None:
        return Here(None, layer, path, why_not)
    found = benefit_of(released.config.name, _run_id(released), released.model, [benefit])
    return Here(found, layer, path)


def _run_id(released: Released) -> str:
    return str(released.about.get("run_id", ""))


def _at_site(
    released: Released, records: list[Record], identity: Identity, site: str
) -> tuple[SiteBenefit, OwnLayer]:
    config, model = released.config, released.model
    kept, held = Holdout(identity.derive("held-out records"), config.evaluation.holdout).split(
        records
    )
    training, held_out = _encoded(released, kept), _encoded(released, held)
    units = len(np.unique(held_out.units))
    if units < _FEWEST_HELD_UNITS or not len(training):
        raise DataError(
            f"site '{site}': {units} {config.unit}s with usable records are held out, and "
            f"{len(training)} records are left to train on: too few to compare anything",
            "compare at sites with more records, or set a larger evaluation.holdout in the next "
            "run",
        )
    return compare(model, released.adapter, training, held_out, site)


def _encoded(released: Released, records: list[Record]) -> EncodedDataset:
    """Return what can be learned from; other records are left out, as in a run."""
    config, model = released.config, released.model
    length, problems = config.model.max_length, RowProblems()
    task = task_of(config)
    return task.encode(records, model.tokenizer, length, model.labels, problems)
