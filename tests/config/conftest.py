from __future__ import annotations

from pathlib import Path

import pytest

MINIMAL = """
name = "x"
task = "classification"
[model]
path = "base"
[data]
train = "train.jsonl"
"""


@pytest.fixture
def run_toml(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(MINIMAL)
    return path
