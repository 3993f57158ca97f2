"""Which graph of masks a run's cohorts have, from its configuration alone."""

from __future__ import annotations

from fedllm.config import RunConfig
from fedllm.encryption.sparse import COMPLETE, MaskGraph, plan_graph
from fedllm.mechanisms import mechanism_of


def planned_graph(config: RunConfig, sites: int) -> MaskGraph:
    """Return who shares masks with whom in a cohort of ``sites``.

    Every sum whose masks come off holds as many honest sites as ``rounds.min_sites`` leaves
    beside the colluders that ``encryption.colluding_share`` allows for, up to a quarter of the
    cohort; and as many as the noise counts on, where sites share it.
    """
    encryption = config.encryption
    if not encryption.masked or not encryption.recover_dropouts:
        return COMPLETE
    mechanism = mechanism_of(config)
    colluders = int(encryption.colluding_share * sites)
    honest = max(2, min(config.rounds.min_sites - colluders, sites // 4))
    demands = [(colluders, honest)]
    if mechanism.colluders is not None:
        demands.append((mechanism.colluders, config.rounds.min_sites - mechanism.colluders))
    return plan_graph(sites, tuple(demands), int(encryption.lost_share * sites))
