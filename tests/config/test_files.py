from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedllm.config import load_run_config, load_site_policy, read_toml
from fedllm.errors import ConfigError


def test_relative_locations_count_from_the_file(run_toml: Path) -> None:
    config = load_run_config(run_toml)
    assert config.model.path == str(run_toml.parent / "base")
    assert config.data.train == str(run_toml.parent / "train.jsonl")


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no file .*none\.toml"):
        load_run_config(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("a = = 1")
    with pytest.raises(ConfigError, match=r"bad\.toml is not valid TOML"):
        load_run_config(tmp_path / "bad.toml")


def test_policy_is_as_strict(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text("[budget]\nepsilon = 2\n[allow]\nmin_cohort = 3\n")
    policy = load_site_policy(path)
    assert (policy.budget.epsilon, policy.allow.min_cohort) == (2.0, 3)
    path.write_text("[budget]\nepsilom = 2\n")
    with pytest.raises(ConfigError, match=r"did you mean 'budget\.epsilon'"):
        load_site_policy(path)


@pytest.mark.parametrize("content", [b"[", b"x = ", b"a = 1\na = 2", b"[a]\n[a]"])
def test_every_refusal_names_file_and_remedy(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"bad\.toml is not valid TOML") as caught:
        load_run_config(tmp_path / "bad.toml")
    assert caught.value.remedy


@pytest.mark.parametrize("line", ["epsilon = 8,0", "epsilon=1,5e-3  # so much", "epsilon = -0,5"])
@pytest.mark.parametrize("end", ["", "\n", "\r\n[allow]\n"])
def test_a_decimal_comma_is_named(tmp_path: Path, line: str, end: str) -> None:
    path = tmp_path / "site.toml"
    path.write_bytes(f"[budget]\n{line}{end}".encode())
    with pytest.raises(ConfigError, match="at line 2") as caught:
        load_site_policy(path)
    assert "a decimal point and no comma" in caught.value.remedy


def test_other_mistakes_are_not_called_a_decimal_comma(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text("[budget]\nepsilon = 8.0.1\n# 8,0\n")
    with pytest.raises(ConfigError) as caught:
        load_site_policy(path)
    assert caught.value.remedy == "check that line"


def test_a_byte_order_mark_is_no_part_of_a_configuration(run_toml: Path) -> None:
    run_toml.write_bytes(b"\xef\xbb\xbf" + run_toml.read_bytes())
    assert load_run_config(run_toml).name == "x"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("name = 'x'\n".encode("utf-16"), "line 1: the file is UTF-16"),
        (b"name = 'x'\n# caf\xe9\n", "line 2: the file is not UTF-8"),
    ],
)
def test_another_encoding_is_named_with_its_remedy(
    tmp_path: Path, content: bytes, words: str
) -> None:
    (tmp_path / "bad.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=words) as caught:
        load_run_config(tmp_path / "bad.toml")
    assert caught.value.remedy == "save it as UTF-8"


@pytest.mark.parametrize(
    "text", ["x = " + "[" * 100_000, "x = " + "9" * 5000, "x = 0x" + "f" * 5000, "x" + ".x" * 5000]
)
def test_what_is_too_long_or_too_deep_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(ConfigError):
        load_run_config(tmp_path / "bad.toml")


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "any.toml"
        path.write_bytes(content)
        with contextlib.suppress(ConfigError):
            read_toml(path)


def test_a_folder_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder, not a TOML file"):
        read_toml(tmp_path)
