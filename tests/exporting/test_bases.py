"""A base model is found where a hub's cache has it, in every format."""

from __future__ import annotations

import json
import shutil

import pytest
from support.hub_cache import named_by

from fedllm.errors import CheckpointError, ConfigError
from fedllm.exporting.export import export
from fedllm.exporting.found import find_released
from fedllm.exporting.released import read_released


@pytest.fixture
def moved(finished, tmp_path, tiny):
    """A run whose base model does not lie any more where it was."""

    def make(kind, task, **sections):
        shutil.copytree(tiny(kind), tmp_path / "before")
        run = finished(kind, task, base=tmp_path / "before", **sections)
        shutil.rmtree(tmp_path / "before")
        return run

    return make


@pytest.mark.parametrize("form", ["peft", "merged", pytest.param("onnx", marks=pytest.mark.slow)])
@pytest.mark.parametrize("asked", [None, "north/tiny"])
def test_a_base_in_the_hubs_cache_is_found(form, asked, moved, hub, tiny, tmp_path):
    if form == "onnx":
        pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    run = moved("llama", "instruction")
    if asked is None:
        named_by(run / "adapter", "north/tiny")
    with pytest.raises(ConfigError, match=r"(?s)north/tiny.*hub cache.*hf download north/tiny"):
        export(run, tmp_path / "out", form, asked)
    snapshot = hub(tiny("llama"))
    export(run, tmp_path / "out", form, asked)
    assert read_released(run, asked).base == snapshot
    card = (tmp_path / "out" / "README.md").read_text()
    assert "north/tiny" in card
    if form == "peft":
        told = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
        assert told["base_model_name_or_path"] == "north/tiny"
    for path in (tmp_path / "out").iterdir():
        # What the cache has links for lies there itself.
        assert not path.is_symlink(), path
        assert str(tmp_path).encode() not in path.read_bytes(), path


def test_a_head_alone_finds_its_base_by_the_runs_card(moved, hub, tiny, tmp_path):
    run = moved("bert", "classification", lora={"rank": 0}, card={"base_model": "north/tiny"})
    hub(tiny("bert"))
    export(run, tmp_path / "out", "merged")


def test_another_model_of_that_name_is_refused(moved, hub, tiny, tmp_path):
    run = named_by(moved("llama", "instruction") / "adapter", "north/tiny").parent
    hub(tiny("gpt2"))
    for asked in (None, "north/tiny"):
        with pytest.raises(CheckpointError, match=r"(?s)another base model.*--base"):
            export(run, tmp_path / "out", "peft", asked)


def test_a_base_of_an_installed_package_is_found_by_its_fingerprint(
    moved, tiny, tmp_path, monkeypatch
):
    """Also for an adapter by itself, which names no place."""
    run = moved("llama", "instruction")
    alone = tmp_path / "alone"
    shutil.copytree(run / "adapter", alone)
    told = json.loads((alone / "shared_model.json").read_text())["base_fingerprint"]
    for place in (run, alone):
        with pytest.raises(ConfigError, match=rf"(?s){told[:16]}.*not on this machine.*--base"):
            find_released(place)
    for name, kind in (("a_carrier", "llama"), ("b_carrier", "gpt2")):
        shutil.copytree(tiny(kind), tmp_path / "site" / name / "model")
        (tmp_path / "site" / name / "__init__.py").touch()
        about = tmp_path / "site" / f"{name}-1.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (about / "RECORD").write_text(f"{name}/model/config.json,,\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    for place in (run, alone):
        assert find_released(place).base == tmp_path / "site" / "a_carrier" / "model"
