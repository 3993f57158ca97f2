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


def test_a_sqlite_file_counts_from_the_file_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "configs"
    assert (
        resolve_location("sqlite:///../d.db?x=1", folder, "k") == f"sqlite:///{tmp_path}/d.db?x=1"
    )
    assert resolve_location("sqlite:////x/d.db", folder, "k") == "sqlite:////x/d.db"
    assert resolve_location("sqlite:///:memory:", folder, "k") == "sqlite:///:memory:"
    monkeypatch.setenv("FEDLLM_X", "here")
    assert resolve_location("sqlite:///${FEDLLM_X}/d.db", folder, "k") == (
        f"sqlite:///{tmp_path}/here/d.db"
    )


@pytest.mark.parametrize("text", ["a\0b.csv", "sqlite:///a\0b"])
def test_a_character_of_code_0_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="k holds a character of code 0"):
        resolve_location(text, tmp_path, "k")


def test_an_unknown_home_is_a_path_like_any_other(tmp_path: Path) -> None:
    assert resolve_location("~nobody-of-this-name/a", tmp_path, "k") == (
        f"{tmp_path}/~nobody-of-this-name/a"
    )
