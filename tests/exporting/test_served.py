"""`fedllm serve` takes an exported model for what it is."""

from __future__ import annotations

import httpx
import pytest
from support.serving_runs import service

from fedllm.errors import ConfigError
from fedllm.exporting.export import export
from fedllm.serving.served import serve_models
from fedllm.serving.usable import open_usable


def test_an_exported_classifier_answers_as_its_run(finished, tmp_path):
    """With its labels, and not as the encoder that it also is."""
    run = finished("bert", model={"feature_scale": 10.0})
    export(run, tmp_path / "shop", "merged")
    models = serve_models([str(run), str(tmp_path / "shop")], None, None, None, None)
    with service(models) as running:
        said = [
            httpx.post(
                f"{running.url}/v1/classify", json={"model": name, "input": "my card is lost"}
            ).json()["data"][0]
            for name in models
        ]
    assert said[0]["label"] == said[1]["label"]
    assert said[0]["probability"] == pytest.approx(said[1]["probability"], abs=1e-4)


def test_an_export_reads_no_more_than_its_positions(finished, tmp_path):
    """As a run and a base model: what is longer would be refused at each text."""
    export(finished("bert"), tmp_path / "shop", "merged")
    with pytest.raises(ConfigError, match=r"--max-length = 100000: the model has"):
        open_usable(tmp_path / "shop", max_length=100_000)
