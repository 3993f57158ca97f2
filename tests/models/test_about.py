"""What ``fedllm model show`` says of a base model."""

from __future__ import annotations

import json
import shutil

import pytest
from typer.testing import CliRunner

from fedllm.cli import app
from fedllm.errors import CheckpointError
from fedllm.models.about import facts_of, licence_of
from fedllm.models.checkpoints import checkpoint_folder, load_weights, read_config


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_the_facts_are_those_of_the_loaded_model(kind, tiny_checkpoint):
    import torch

    folder = tiny_checkpoint(kind)
    found = facts_of(str(folder))
    config, architecture = read_config(checkpoint_folder(str(folder)))
    model = load_weights(folder, config, architecture, torch.float32, language_model=kind != "bert")
    whole = sum(parameter.numel() for parameter in model.parameters())
    assert found.causal == (kind != "bert")
    assert (found.layers, found.hidden_size, found.model_type) == (3, 16, kind)
    assert found.stored == {"F32": found.parameters}
    # A pooler that no run uses may lie in the files beside it.
    assert whole <= found.parameters <= whole + 16 * 17
    assert found.query_value == architecture.query_value


@pytest.mark.parametrize(
    ("card", "files", "licence"),
    [
        ("---\nlicense: apache-2.0\ntags: [x]\n---\n# A\n", (), "apache-2.0"),
        ('---\r\ntags:\r\n- a\r\nlicense: "gemma"\r\n---\r\n', (), "gemma"),
        ("---\ntags: [x]\n---\nlicense: none of the head\n", ("LICENSE.txt",), "LICENSE.txt"),
        ("# no head\n", ("NOTICE", "LICENSE"), "LICENSE, NOTICE"),
        (None, (), ""),
        ("---\nlicense: never closed\n", (), ""),
    ],
)
def test_a_licence_is_what_the_card_or_a_file_says(card, files, licence, tmp_path):
    if card is not None:
        (tmp_path / "README.md").write_bytes(card.encode())
    for name in files:
        (tmp_path / name).write_text("words")
    assert licence_of(tmp_path) == licence


def test_the_command_shows_a_model_to_people_and_to_scripts(tiny_checkpoint, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_checkpoint("llama"), folder)
    (folder / "README.md").write_text("---\nlicense: my\x1b[31m licence\n---\n")
    done = CliRunner().invoke(app, ["model", "show", str(folder)])
    assert done.exit_code == 0, done.output
    found = json.loads(CliRunner().invoke(app, ["model", "show", str(folder), "--json"]).stdout)
    for words in ("llama, decoder", "q_proj, v_proj", found["fingerprint"]):
        assert words in done.stdout
    assert "\x1b" not in done.stdout
    assert found["layers"] == 3


def test_a_model_that_no_run_can_use_is_refused_with_the_reason(tiny_checkpoint, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_checkpoint("llama"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    with pytest.raises(CheckpointError):
        facts_of(str(folder))
