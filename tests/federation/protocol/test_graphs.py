"""Who shares masks with whom follows from the configuration and the size of the cohort."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.federation import small_config

from fedllm.encryption.sparse import COMPLETE, MaskGraph
from fedllm.federation.protocol import graphs
from fedllm.federation.protocol.graphs import planned_graph


@pytest.fixture
def asked(monkeypatch):
    """What a graph is planned for."""
    found = []

    def plan(*what):
        found.append(what)
        return MaskGraph(4, 1, 0)

    monkeypatch.setattr(graphs, "plan_graph", plan)
    return found


def config(min_sites=50, encryption=(), **sections):
    shares = {"colluding_share": 0.1, "lost_share": 0.05, **dict(encryption)}
    rounds = {"min_sites": min_sites}
    data = {"sites": 500}
    return small_config(Path("model"), data=data, rounds=rounds, encryption=shares, **sections)


@pytest.mark.parametrize(
    ("sites", "min_sites", "colluders", "honest", "lost"),
    [
        # As many as the smallest sum leaves beside the colluders,
        (400, 50, 40, 10, 20),
        # up to a quarter of the cohort,
        (400, 390, 40, 100, 20),
        # and two at least; parts of a site are none.
        (419, 43, 41, 2, 20),
        (419, 44, 41, 3, 20),
    ],
)
def test_each_sum_holds_honest_sites(asked, sites, min_sites, colluders, honest, lost):
    assert planned_graph(config(min_sites), sites) == MaskGraph(4, 1, 0)
    assert asked == [(sites, ((colluders, honest),), lost)]


def test_noise_that_sites_share_counts_on_honest_ones_too(asked):
    shared = config(
        privacy={"epsilon": 3.0, "noise": "distributed", "colluders": 7},
        training={"local_steps": 1, "optimizer": "sgd", "sampling_rate": 0.3},
    )
    planned_graph(shared, 400)
    assert asked == [(400, ((40, 10), (7, 43)), 20)]


@pytest.mark.parametrize("off", ["masks", "recover_dropouts"])
def test_without_masks_that_come_off_again_the_graph_is_complete(asked, off):
    assert planned_graph(config(encryption={off: False}), 400) == COMPLETE
    assert asked == []
