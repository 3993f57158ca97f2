"""What leaves a site holds its whole share of the noise, whatever its records and its orders.

Beyond the quantiser's range noise is cut off. A coordinator that aligns gradients, by the scale
of features or by the adapter that it sends, would push a site's sum there, and a sum of shares
that were cut off hides less than the ledgers say.
"""

from __future__ import annotations

import numpy as np
import pytest
from support.chance import standard_deviation_bounds
from support.federation import LABELS, small_config
from support.tasks import encode

from fedllm.adapters import adapter_of
from fedllm.config import RunConfig, parse
from fedllm.data.records import Record
from fedllm.encryption.quantise import Quantiser
from fedllm.errors import ConfigError, RefusedError
from fedllm.federation.site.work import TrainingAtSite
from fedllm.mechanisms import (
    EvaluationSums,
    LocalResult,
    LocalStatistics,
    SiteRound,
    mechanism_of,
    rounded_size,
)
from fedllm.mechanisms.local import largest_units
from fedllm.models.manifest import AdapterManifest
from fedllm.randomness import RandomStream
from fedllm.tasks.cache import ModelCache

# Far below any test's: no honest run is called a liar.
FALSE_ALARM = 1e-10
LENGTH = 4000
MANIFEST = AdapterManifest.of([("a.lora_B.w", (LENGTH,), "lora")])
BATCH, SITES = 40, 4
SHARED = {
    "privacy": {"epsilon": 20.0, "noise": "distributed"},
    "training": {
        "local_steps": 1,
        "optimizer": "sgd",
        "sampling_rate": 1.0,
        "learning_rate": 1.0,
        "batch_size": BATCH,
    },
    "rounds": {"count": 2, "min_sites": SITES},
    "data": {"train": "t", "labels": list(LABELS), "sites": SITES},
}
KINDS = {
    "shared": SHARED,
    "tiny learning rate": {**SHARED, "training": {**SHARED["training"], "learning_rate": 1e-44}},
    "discrete": {
        **SHARED,
        "privacy": {**SHARED["privacy"], "distribution": "discrete_gaussian"},
        "encryption": {"bits": 20},
    },
    "whole sites": {**SHARED, "privacy": {**SHARED["privacy"], "unit": "site"}},
}
kinds = pytest.mark.parametrize("kind", KINDS)


def config_of(kind: str, **sections) -> RunConfig:
    values = {"name": "x", "task": "classification", "model": {"path": "m"}, **KINDS[kind]}
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return parse(RunConfig, values, "test")


class Aligned:
    """All records of a site say the same in every value, and there are many of them."""

    units, length = 4 * BATCH, LENGTH

    def __init__(self, value: float) -> None:
        self.value = value

    def train(self, settings, sampling, noise):
        return LocalResult(np.full(LENGTH, self.value, np.float32), NOTHING, 1.0)

    def gradient_sum(self, settings, sampling):
        return np.full(LENGTH, self.value), NOTHING


NOTHING = LocalStatistics(0.0, 0, 0, ())


def left(config: RunConfig, work, noise: float, segments=MANIFEST.segments) -> np.ndarray:
    """Return one site's levels as the values for which the coordinator takes them."""
    mechanism = mechanism_of(config)
    bounds = [(s.size, b) for s, b in zip(segments, mechanism.bounds(segments), strict=True)]
    quantiser = Quantiser(bounds, config.encryption.bits)
    asked = SiteRound(
        work, 0, noise, quantiser.quantise, quantiser.quantise_parts, ("site-0", 1), None
    )
    return quantiser.dequantise_sum(mechanism.contribute(asked).levels, 1)


def share(config: RunConfig, noise: float) -> float:
    """One site's standard deviation in the unit of an update, from what the ledger says."""
    privacy, training = config.privacy, config.training
    share = noise * privacy.clipping_norm / np.sqrt(config.rounds.min_sites)
    if privacy.unit == "site":
        return 2 * share
    return share * training.learning_rate / training.batch_size


@kinds
@pytest.mark.parametrize("value", [-1e30, -4.0 * BATCH, 0.0, 4.0 * BATCH, 1e30])
def test_a_sum_beyond_its_range_leaves_with_its_whole_share(kind, value):
    config = config_of(kind)
    noise = mechanism_of(config).announced_noise(1, ())
    found = left(config, Aligned(value), noise)
    promised = share(config, noise)
    assert found.std() >= standard_deviation_bounds(LENGTH, promised, FALSE_ALARM)[0]
    # And not drowned in more.
    assert found.std() <= 1.2 * promised


@kinds
def test_a_sum_of_two_sites_does_not_wrap_around(kind):
    """One says all that it can, the other the opposite."""
    config = config_of(kind)
    mechanism = mechanism_of(config)
    noise = mechanism.announced_noise(1, ())
    up, down = (left(config, Aligned(value), noise) for value in (-1e30, 1e30))
    reach = mechanism.bounds(MANIFEST.segments)[0]
    assert np.abs(np.concatenate([up, down])).max() < reach
    promised = share(config, noise) * np.sqrt(2)
    assert (up + down).std() >= standard_deviation_bounds(LENGTH, promised, FALSE_ALARM)[0]
    assert abs((up + down).mean()) < 8 * promised / np.sqrt(LENGTH)


def test_cutting_off_brings_no_two_sums_further_apart():
    """Without noise: one unit more or less moves what leaves by its clipped gradient at most."""
    room = mechanism_of(config_of("shared"))._room
    stream = RandomStream.seeded(3)
    for scale in (0.1, 1.0, 3.0):
        one = stream.normal(50) * scale * room.signal
        unit = stream.normal(50)
        other = one + unit / np.linalg.norm(unit)
        kept = [room.noised(values, 0.0, stream) * room.reach for values in (one, other)]
        assert np.linalg.norm(kept[0] - kept[1]) <= 1 + 1e-9


@kinds
def test_noise_for_which_there_is_no_room_is_refused_before_a_record_is_touched(kind):
    """A coordinator may announce more noise than is needed, up to what the levels hold."""
    mechanism = mechanism_of(config_of(kind))
    needed = mechanism.announced_noise(1, ())
    assert mechanism.agreed_noise(needed, 2 * needed) == 2 * needed
    for announced in (1e3 * needed, 1e300, float("inf"), float("nan")):
        with pytest.raises(RefusedError, match="noise multiplier"):
            mechanism.agreed_noise(needed, announced)


@pytest.mark.parametrize("kind", ["shared", "whole sites"])
def test_levels_that_are_coarser_than_a_share_are_refused(kind):
    with pytest.raises(ConfigError, match=r"encryption.bits = 4 is too coarse") as caught:
        mechanism_of(config_of(kind, encryption={"bits": 4})).bounds(MANIFEST.segments)
    enough = int(caught.value.remedy.split()[-1])
    fine = mechanism_of(config_of(kind, encryption={"bits": enough}))
    assert fine.bounds(MANIFEST.segments)
    coarse = mechanism_of(config_of(kind, encryption={"bits": enough - 1}))
    with pytest.raises(ConfigError, match=f"bits = {enough}"):
        coarse.bounds(MANIFEST.segments)
    # A site judges by the noise that is announced, too.
    needed = 1e-3
    with pytest.raises(RefusedError, match="does not fit the run's levels"):
        coarse.agreed_noise(needed, needed)


@pytest.mark.parametrize("kind", ["shared", "discrete"])
def test_a_site_far_larger_than_the_run_is_made_for_does_not_take_part(kind):
    mechanism = mechanism_of(config_of(kind))
    noise = mechanism.announced_noise(1, ())
    # A site counts as fewer than it has, and may have up to four times a batch.
    most = max(n for n in range(1, 9 * BATCH) if largest_units(rounded_size(n), 0.0) <= 4 * BATCH)
    assert mechanism.cost(rounded_size(most), LENGTH, noise)
    with pytest.raises(RefusedError, match="more than 4 times as large") as caught:
        mechanism.cost(rounded_size(most + 1), LENGTH, noise)
    assert 3 * BATCH < most <= 4 * BATCH
    # The size of the site is not the coordinator's to know.
    assert str(rounded_size(most + 1)) not in str(caught.value)


@pytest.mark.parametrize("noise", ["local", "distributed"])
@pytest.mark.parametrize("units", [0, 10**9])
def test_evaluation_sums_leave_with_their_whole_share(noise, units):
    sections = {"evaluation": {"every": 1, "epsilon": 1.0}, "privacy": {"noise": noise}}
    sums = EvaluationSums(config_of("shared", **sections))
    total = np.full(LENGTH, float(units))
    drawn = sums.noised(total, np.sqrt(LENGTH), RandomStream.secure())
    quantiser = Quantiser([(LENGTH, sums.LARGEST_SUM)], sums.BITS)
    levels = quantiser.quantise(drawn, RandomStream.secure())
    found = quantiser.dequantise_sum(levels, 1)
    promised = sums.event.noise_multiplier * np.sqrt(LENGTH)
    promised /= np.sqrt(SITES) if noise == "distributed" else 1.0
    assert found.std() >= standard_deviation_bounds(LENGTH, promised, FALSE_ALARM)[0]


@pytest.mark.parametrize("epsilon", [1e-6, 19.0])
def test_evaluations_whose_noise_does_not_fit_are_refused(epsilon, monkeypatch):
    monkeypatch.setattr(EvaluationSums, "BITS", 12 if epsilon > 1 else 24)
    sections = {"evaluation": {"every": 1, "epsilon": epsilon}}
    with pytest.raises(ConfigError, match="evaluation"):
        EvaluationSums(config_of("shared", **sections)).room(3**0.5)


@pytest.mark.parametrize("scale", [1e-42, 1e13, 1e300])
def test_a_clipping_norm_that_floating_point_rounds_away_is_refused(scale):
    with pytest.raises(ConfigError, match="clipping_norm"):
        config_of("shared", privacy={"clipping_norm": scale})


@pytest.mark.parametrize("kind", ["shared", "discrete"])
@pytest.mark.parametrize("hostile", ["feature scale", "adapter"])
def test_orders_that_align_all_gradients_take_no_noise_away(tiny_checkpoint, kind, hostile):
    """A real model: features of no length leave the bias alone, which all records push alike."""
    config = small_config(
        tiny_checkpoint("bert"),
        **{name: section for name, section in KINDS[kind].items() if name != "data"},
        lora={"rank": 0},
        model={"feature_scale": 1e-3},
        data={"sites": SITES},
    )
    model = ModelCache().get(config, LABELS)
    method = adapter_of(model)
    rows = [
        Record({"text": "lost card", "label": LABELS[2]}, None, None, "made up")
        for _ in range(4 * BATCH)
    ]
    dataset = encode(rows, config.task, model.tokenizer, 16, model.labels)
    adapter = model.initial.copy()
    if hostile == "adapter":
        # Here float64 numbers lie further apart than the noise of a step is wide.
        adapter[:3] = (2.0**53, -(2.0**53), 2.0**52)
    method.place(adapter)
    work = TrainingAtSite(model, method, dataset)
    noise = mechanism_of(config).announced_noise(1, ())
    found = np.array([left(config, work, noise, method.up.segments)[:3] for _ in range(40)])
    low, _ = standard_deviation_bounds(len(found), share(config, noise), FALSE_ALARM / 3)
    assert (found.std(axis=0) >= low).all(), found.std(axis=0) / share(config, noise)
