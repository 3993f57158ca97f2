"""Configurations, model folders and results of audits: success or a FedllmError."""

from __future__ import annotations

import shutil
from pathlib import Path

from support import damage
from support.damage import Target, at, check, text

from fedllm.audit.ledgers.comparison import COMPARISON_FILE, load_comparison
from fedllm.config import AllowSection, load_run_config, load_site_policy
from fedllm.federation.site.orders import OrderReader
from fedllm.identity.config import load_federation_config
from fedllm.identity.keys import Identity
from fedllm.identity.roster import Roster
from fedllm.models.checkpoints import read_config
from fedllm.tasks.cache import ModelCache

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


def test_configuration_files(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDLLM_DATA", str(tmp_path))
    for name, read in (
        ("deployment/run.toml", load_run_config),
        ("deployment/site.toml", load_site_policy),
        ("deployment/federation.toml", load_federation_config),
    ):
        path = tmp_path / "file.toml"
        sample = (EXAMPLES / name).read_bytes()
        put = at(path, lambda read=read, path=path: read(path))
        check(Target(name, sample, put, damage.in_toml))


def test_configurations_that_a_coordinator_sends(tmp_path):
    identity = Identity.generate("anne")
    roster = Roster(identity.public_bytes(), {"anne": identity.public_bytes()})
    allow = AllowSection(min_cohort=1, encryption="optional", non_private=True)
    reader = OrderReader(identity, roster, allow, ModelCache(), str(tmp_path))

    def read(content):
        return reader.configuration(text(content), "00" * 32)

    sample = (EXAMPLES / "deployment" / "run.toml").read_bytes()
    check(Target("configuration", sample, read, damage.in_toml))


def test_configurations_of_models(tiny_checkpoint, tmp_path):
    folder = shutil.copytree(tiny_checkpoint("bert"), tmp_path / "model")
    path = folder / "config.json"
    sample = path.read_bytes()
    put = at(path, lambda: read_config(folder))
    check(Target("config.json", sample, put, damage.in_json), share=0.5)


def test_comparisons(tmp_path):
    sample = b"""{"questions": 3, "chance": 0.1, "secrets": 2, "maximum_exposure": 9.0,
      "expected_exposure": 1.4, "examples": [{"prompt": "p", "right": "r", "answers": ["a"]}],
      "models": [{"name": "before", "private": null, "accuracy": 0.2, "exact": 0.1,
      "extracted": 0, "exposure": [1.0, 2.0]}]}"""
    put = at(tmp_path / COMPARISON_FILE, lambda: load_comparison(tmp_path))
    check(Target("comparison", sample, put, damage.in_json))
