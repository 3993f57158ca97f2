"""A sandbox trains with the noise that a site trains with."""

from __future__ import annotations

import pytest
from support.federation import build, records, small_config

from fedllm.audit.attacks.sandbox import Sandbox, open_sandbox
from fedllm.errors import ConfigError
from fedllm.mechanisms import mechanism_of
from fedllm.privacy.ledger.ledger import Ledger
from fedllm.randomness import RandomStream

SHARED = {"local_steps": 1, "optimizer": "sgd", "sampling_rate": 0.2, "learning_rate": 1.0}


@pytest.mark.parametrize("evaluation", [{}, {"every": 1, "epsilon": 1.0, "holdout": 0.2}])
@pytest.mark.parametrize("noise", ["local", "distributed"])
def test_its_noise_is_the_sites_whatever_else_the_budget_is_for(
    tiny_checkpoint, tmp_path, noise, evaluation
):
    config = small_config(
        tiny_checkpoint("bert"),
        privacy={"epsilon": 4.0, "noise": noise},
        training=SHARED,
        evaluation=evaluation,
    )
    data = {f"site-{i}": records(40, seed=i) for i in range(3)}
    federation = build(tmp_path, config, data)
    federation.round(noise_multiplier=mechanism_of(config).announced_noise(1, ()))
    ledger = Ledger.open(tmp_path / "site-0.sqlite", "site-0", federation.identities["site-0"])
    (charged,) = ledger.events_of_run("run-1", "training")
    sandbox = Sandbox(config, federation.model(), [])
    settings = sandbox.settings(40)
    assert settings.noise_multiplier == charged.noise_multiplier
    assert settings.sampling_rate == charged.sampling_rate


@pytest.mark.parametrize("epsilon", [None, 4.0])
@pytest.mark.parametrize("noise", ["local", "distributed"])
def test_a_run_that_protects_whole_sites_has_no_sandbox(tmp_path, epsilon, noise):
    config = small_config(tmp_path, privacy={"epsilon": epsilon, "noise": noise, "unit": "site"})
    with pytest.raises(ConfigError, match="this run protects whole sites"):
        open_sandbox(config, 10, RandomStream.seeded(0))
