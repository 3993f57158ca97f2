"""A model made smaller that is the base's own again, without a word.

Training with privacy moves weights little, and fewer bits a weight may round all of it away.
"""

from __future__ import annotations

import pytest
import torch
from exporting.conftest import finished, tiny
from transformers import AutoModelForCausalLM

from fedllm.compression.integers import INTEGERS
from fedllm.compression.steps import Pruning, prune_run, quantize_run
from fedllm.errors import TrainingError

__all__ = ["finished", "tiny"]

LITTLE = 0.004


def silent(*_):
    pass


@pytest.fixture
def half(tiny, tmp_path):
    """A base model that is kept in bfloat16."""
    made, base = tiny("llama"), tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(made, dtype=torch.bfloat16).save_pretrained(base)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).write_bytes((made / name).read_bytes())
    return base


FORMS = ["bfloat16", "int8", *(pytest.param(to, marks=pytest.mark.slow) for to in INTEGERS[1:])]


@pytest.mark.parametrize("to", FORMS)
def test_fewer_bits_that_lose_what_was_trained_are_refused(finished, tmp_path, to):
    run = finished("llama", "causal", trained=LITTLE)
    with pytest.raises(TrainingError, match="lose what was trained") as caught:
        quantize_run(run, tmp_path / "small", to)
    assert "--dtype float32" in caught.value.remedy
    assert list(tmp_path.glob("*small*")) == []


def test_a_pruned_model_whose_type_loses_it_is_refused_and_float32_keeps_it(
    finished, half, tmp_path
):
    run = finished("llama", "causal", trained=LITTLE, base=half)
    asked = Pruning("share", 0.1)
    with pytest.raises(TrainingError, match="lose what was trained") as caught:
        prune_run(run, tmp_path / "small", asked, None, None, silent)
    assert "--dtype float32" in caught.value.remedy
    assert not (tmp_path / "small").exists()
    written = prune_run(run, tmp_path / "small", asked, None, None, silent, dtype="float32")
    # What pruning moved is not hidden behind what the file holds.
    assert written.largest > 1e-3
    assert "and training moved those by" in (tmp_path / "small" / "README.md").read_text()


def test_an_adapter_that_changes_nothing_is_not_made_smaller(finished, tmp_path):
    run = finished("llama", "causal", trained=0.0)
    with pytest.raises(TrainingError, match="changes nothing"):
        quantize_run(run, tmp_path / "small", "int8")


def test_figures_of_the_run_are_not_those_of_what_was_made_of_it(finished, tmp_path):
    """With all but one weight in a hundred gone, the card still had the run's accuracy."""
    prune_run(finished(), tmp_path / "small", Pruning("share", 0.99), None, None, silent)
    text = (tmp_path / "small" / "README.md").read_text()
    for name, done in (("Quality", "measured"), ("Audits", "attacked")):
        part = text.partition(f"## {name}\n")[2].partition("\n## ")[0]
        assert f"{done.capitalize()} before it was made smaller" in part
        assert f"The model in this folder was not {done}." in part
