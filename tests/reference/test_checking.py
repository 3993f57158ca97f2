"""All that is wrong with a file is told at once, each with its line."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from fedllm.cli import app
from fedllm.errors import ConfigError
from fedllm.reference.checking import check_file, lines_of_keys
from fedllm.reference.kinds import FILE_KINDS, kind_called

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FILES = {
    "run": "bank_intents/run.toml",
    "site": "site.toml",
    "federation": "deployment/federation.toml",
    "pretraining": "pretraining/small.toml",
    "alignment": "preferences/align_grpo.toml",
}
WRONG = """\
name = "x y"
task = "clasification"

[modle]
path = "x"

[model]
path = "model"

[data]
train = "postgresql+psycopg://nurse:pa55word@db/clinic"
labls = ["a",
  "b"]

[privacy]
epsilno = 8
noise = "shared"
delta = 0.5
"""


@pytest.fixture
def written(tmp_path):
    def write(text: str | bytes) -> Path:
        path = tmp_path / "file.toml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


@pytest.mark.parametrize("kind", FILE_KINDS, ids=lambda kind: kind.name)
def test_good_files_of_every_kind_are_known_and_have_no_errors(kind):
    found = check_file(EXAMPLES / FILES[kind.name])
    assert (found.kind, found.errors) == (kind.name, ())


def test_all_errors_are_told_with_lines_and_remedies(written):
    found = check_file(written(WRONG))
    assert found.kind == "run"
    assert [(one.line, one.key) for one in found.errors] == [
        (1, "name"),
        (2, "task"),
        (4, "modle"),
        (12, "data.labls"),
        (16, "privacy.epsilno"),
        (17, "privacy.noise"),
        (18, "privacy.delta"),
    ]
    remedies = {one.key: one.remedy for one in found.errors}
    assert remedies["task"] == "did you mean 'classification'?"
    assert remedies["modle"] == "did you mean 'model'?"
    assert remedies["data.labls"] == "did you mean 'data.labels'?"
    assert remedies["privacy.noise"] == "did you mean 'distributed'?"
    assert "pa55word" not in repr(found)
    assert [one.key for one in found.notes] == ["model.path"]


def test_what_is_missing_has_no_line_and_says_what_to_add(written):
    found = check_file(written('task = "causal"\n[rounds]\n'))
    assert {one.key for one in found.errors} == {"name", "model", "data"}
    assert all(one.line is None and one.remedy.startswith("add ") for one in found.errors)


@pytest.mark.parametrize(
    ("text", "line"),
    [("name = ", 1), ('name = "a"\n[model\npath = "x"\n', 2), ("a = 1\na = 2\n", 2)],
)
def test_a_file_that_is_being_written_is_told_by_its_line(written, text, line):
    found = check_file(written(text))
    assert found.kind == ""
    assert found.errors[0].line in (line, None)
    assert "not valid TOML" in found.errors[0].words


def test_an_empty_file_and_a_file_of_another_encoding(written):
    assert "says nothing" in check_file(written("")).errors[0].words
    with pytest.raises(ConfigError, match="not UTF-8"):
        check_file(written(b'name = "\xe4"\n'))
    with pytest.raises(ConfigError, match="there is no file"):
        check_file(Path("nowhere.toml"))


def test_a_kind_can_be_named(written):
    path = written("[training]\nlearning_rate = 0.1\n")
    assert check_file(path, kind_called("run")).kind == "run"
    with pytest.raises(ConfigError, match="no kind of file"):
        kind_called("runs")


LINES = [line for name in FILES.values() for line in (EXAMPLES / name).read_text().split("\n")]
VALUES = st.one_of(
    st.sampled_from(["", '"', "[", "{}", "[[1]]", "-1", "nan", "1e400", "2024-01-01", '"8,0"']),
    st.integers().map(str),
    st.text(max_size=5),
)


@given(
    start=st.integers(0, len(LINES) - 12),
    changed=st.integers(0, 11),
    value=VALUES,
    left_out=st.integers(0, 11),
)
@settings(max_examples=60)
def test_any_file_is_checked_or_refused(start, changed, value, left_out):
    lines = LINES[start : start + 12]
    lines[changed] = lines[changed].partition("=")[0] + "= " + value
    del lines[left_out]
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "file.toml"
        path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
        try:
            found = check_file(path)
        except ConfigError as error:
            assert error.remedy
        else:
            assert all(one.words for one in found.errors)


def test_lines_of_keys():
    text = "name = 1\n[a]\nb = [\n  1,\n]\n'c' = 2\n[a.d]\ne=1\n"
    assert lines_of_keys(text) == {"name": 1, "a": 2, "a.b": 3, "a.c": 6, "a.d": 7, "a.d.e": 8}


def test_the_command_ends_with_2_and_speaks_json(written):
    path = written(WRONG)
    shown = CliRunner().invoke(app, ["config", "check", str(path)])
    assert shown.exit_code == 2
    assert f"{path}:16: error: unknown key 'privacy.epsilno'" in shown.output
    assert "7 errors" in shown.output
    plain = CliRunner().invoke(app, ["config", "check", str(path), "--json"])
    assert plain.exit_code == 2
    assert len(json.loads(plain.output)["errors"]) == 7
    good = CliRunner().invoke(app, ["config", "check", str(EXAMPLES / FILES["site"])])
    assert good.exit_code == 0
    assert "a site's policy, nothing wrong" in good.output
