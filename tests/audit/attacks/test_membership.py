"""Membership inference: known figures on known scores; a model that learnt by heart is caught."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtr
from support.tasks import load_model

from fedllm.audit.attacks import membership
from fedllm.audit.attacks.canaries import losses_of
from fedllm.audit.attacks.membership import Shadows, judge, roc, train_shadows
from fedllm.audit.attacks.sandbox import Sandbox
from fedllm.audit.selftest.material import LABELS, Material, made_up
from fedllm.randomness import RandomStream

MEMBER = np.arange(4000) < 2000


def test_auc_and_rates_of_two_normal_distributions_are_the_known_ones():
    stream = np.random.default_rng(0)
    found = judge("x", 1.0, stream.normal(size=4000) + 1.5 * MEMBER, MEMBER)
    assert found.auc == pytest.approx(ndtr(1.5 / np.sqrt(2)), abs=0.01)
    assert found.auc_interval[0] < ndtr(1.5 / np.sqrt(2)) < found.auc_interval[1]
    assert found.tpr_at_1_percent == pytest.approx(ndtr(1.5 - 2.326), abs=0.05)
    assert found.tpr_at_0_1_percent <= found.tpr_at_1_percent
    assert found.false_positive[0] == found.true_positive[0] == 0.0
    assert found.false_positive[-1] == found.true_positive[-1] == 1.0


def test_scores_that_say_nothing_are_chance_and_ties_are_no_information():
    flat = judge("x", None, np.zeros(4000), MEMBER)
    assert flat.auc == 0.5
    assert flat.tpr_at_1_percent == 0.0
    perfect = judge("x", None, MEMBER.astype(float), MEMBER)
    assert perfect.auc == perfect.tpr_at_0_1_percent == 1.0
    false, true = roc(np.array([3.0, 2.0, 2.0, 1.0]), np.array([True, True, False, False]))
    assert (false.tolist(), true.tolist()) == ([0, 0, 0.5, 1], [0, 0.5, 1, 1])


def test_score_is_the_log_likelihood_ratio_of_two_normals():
    shadows = Shadows(np.array([2.0]), np.array([0.0]), 0.5)
    for value in (-1.0, 0.7, 3.0):
        ratio = (-((value - 2) ** 2) + value**2) / (2 * 0.25)
        assert shadows.score(np.array([value]))[0] == pytest.approx(ratio)


def test_a_model_that_learnt_its_records_by_heart_is_told_by_its_shadows(tmp_path):
    material = Material(tmp_path)
    config = material.config(
        rounds={"count": 2, "min_sites": 2},
        training={
            "local_steps": 15,
            "sampling_rate": 1.0,
            "learning_rate": 0.05,
            "optimizer": "adam",
            "microbatch_size": 256,
        },
        privacy={"epsilon": None},
        lora={"rank": 4},
    )
    sandbox = Sandbox(config, load_model(config, LABELS), [])
    records = made_up(120, "members", lambda i: None)
    member = np.arange(120) < 60
    told = []
    shadows = train_shadows(
        sandbox, records, 2, RandomStream.seeded(1), lambda done, of: told.append((done, of))
    )
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert (shadows.inside > shadows.outside).mean() > 0.8
    everyone = sandbox.encode(records)
    sandbox.model.set_adapter(sandbox.model.initial)
    untrained = membership.attack("before", None, sandbox.model, everyone, member, shadows)
    sandbox.train(sandbox.encode(records[:60]), sandbox.settings(60), lambda *_: None)
    assert losses_of(sandbox.model, everyone)[:60].mean() < 0.5
    trained = membership.attack("after", None, sandbox.model, everyone, member, shadows)
    assert trained.auc > 0.8
    assert 0.3 < untrained.auc < 0.7
