from __future__ import annotations

from pathlib import Path

import pytest

from fedllm.config import resolve_location
from fedllm.errors import ConfigError


def test_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDLLM_X", raising=False)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "configs"
    assert resolve_location("${FEDLLM_X:-../d}/a.csv", folder, "k") == str(tmp_path / "d/a.csv")
    with pytest.raises(ConfigError, match="FEDLLM_X"):
        resolve_location("${FEDLLM_X}/a.csv", folder, "k")
    monkeypatch.setenv("FEDLLM_X", "here")
    assert resolve_location("${FEDLLM_X:-../d}/a.csv", folder, "k") == str(tmp_path / "here/a.csv")
    url = "postgresql://u@h/db"
    assert resolve_location(url, folder, "k") == url
