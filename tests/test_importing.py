"""Each process imports what its task needs: the large libraries take seconds and memory."""

from __future__ import annotations

import gc
import json
import subprocess
import sys

import pytest
from support.federation import records, small_config, write_jsonl
from support.tiny_models import save_tiny

from fedllm.config import to_toml
from fedllm.importing import importing

HEAVY = ("torch", "transformers", "peft", "opacus", "dp_accounting", "matplotlib", "scipy.stats")
# What a site and the coordinator of a simulation are made of.
SITE = "import fedllm.federation.site.site, fedllm_client.app, fedllm_client.node"
SIMULATION = "import fedllm_client.simulated, fedllm_server.loop, fedllm_server.finishing"


def loaded(program: str, *arguments: str) -> set[str]:
    """Run a program by itself, and return which of the large libraries it had in the end."""
    ending = f"import json, sys; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\n{ending}", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_a_site_and_a_simulation_are_set_up_with_torch_and_transformers_alone():
    assert loaded(f"{SITE}\n{SIMULATION}") == {"torch", "transformers"}


COMMAND = """
import sys
from fedllm.cli import app
try:
    app()
except SystemExit as end:
    assert not end.code, end.code
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({"lora": {"rank": 0}}, set()),
        # An adapter is tried by Opacus's hooks, whatever it is trained by.
        ({"lora": {"rank": 2}}, {"peft", "opacus", "scipy.stats"}),
        # Opacus checks what batches that are drawn cost, and epsilon is plotted.
        (
            {"lora": {"rank": 0}, "privacy": {"epsilon": 8.0}, "training": {"batch_size": 2}},
            {"dp_accounting", "opacus", "scipy.stats", "matplotlib"},
        ),
    ],
)
def test_a_run_imports_what_it_trains_with(changes, more, tmp_path):
    write_jsonl(tmp_path / "train.jsonl", records(12))
    save_tiny("bert", tmp_path / "model")
    data = {"train": str(tmp_path / "train.jsonl"), "sites": 2}
    config = small_config(tmp_path / "model", data=data, **changes)
    (tmp_path / "run.toml").write_text(to_toml(config))
    out = str(tmp_path / "out")
    found = loaded(COMMAND, "simulate", str(tmp_path / "run.toml"), "--out", out)
    assert found == {"torch", "transformers"} | more


def test_the_collector_rests_while_something_is_imported_and_goes_on_as_before():
    with importing():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), importing():
        raise ImportError
    assert gc.isenabled()
    gc.disable()
    try:
        with importing():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
