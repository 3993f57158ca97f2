"""The run that puts small faults into the program: on a program small enough to know them all."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from mutants.__main__ import main
from mutants.drawing import mutants_of

PROGRAM = '''"""Doors."""


def may_enter(age, names):
    """Whether anybody may."""
    if age < 18:
        raise ValueError(f"{age + 1} is too young")
    return sorted(names, key=len) != []


def unused(text: str = "a"):
    return text
'''

TESTS = """import pytest
from house import may_enter

def test_age():
    assert may_enter(18, ["a"])
    with pytest.raises(ValueError):
        may_enter(17, ["a"])
"""


def test_a_small_program_has_these_mutants_and_no_other() -> None:
    source = PROGRAM.encode()
    found = [mutant.diff(source).split("\n+")[1].strip() for mutant in mutants_of("p", source)]
    assert sorted(found) == sorted(
        [
            "if (age <= 18):",
            "if (age >= 18):",
            "if age < 19:",
            "if age < 17:",
            "pass",
            "return None",
            "return (sorted(names, key=len) == [])",
            "return list(names) != []",
            "return None",
        ]
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a and b", "(a or b)"),
        ("not a", "(a)"),
        ("f(a, b, c)", "f(b, a, c)"),
        ("a <= b", "(a > b)"),
        ("a is None", "(a is not None)"),
        ("True", "False"),
        ("0.25", "0.5"),
        ("max(a, b)", "min(a, b)"),
        ("a // b", "(a * b)"),
        ("c if a.b else d", "c if (not a.b) else d"),
    ],
)
def test_kinds_of_mutants(before: str, after: str) -> None:
    source = f"# é\nx = {before}\n".encode()
    found = [mutant.apply(source).decode() for mutant in mutants_of("p", source)]
    assert f"# é\nx = {after}\n" in found


@pytest.mark.parametrize("text", ['"a" + b', "'text'", "f'{1 + 2}'", "None", "[a] + [b]"])
def test_words_and_lists_are_left_alone(text: str) -> None:
    assert mutants_of("p", f"x = {text}\n".encode()) == []


def test_survivors_are_named_and_the_program_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    (root / "tests").mkdir(parents=True)
    (root / "house.py").write_text(PROGRAM)
    (root / "pytest.ini").write_text("[pytest]\n")
    (root / "tests" / "test_house.py").write_text(TESTS)
    known = tmp_path / "known.toml"
    known.write_text(
        "[[mutant]]\npath = 'house.py'\nreason = 'nobody asks for the order'\ndiff = '''\n"
        "-    return sorted(names, key=len) != []\n+    return list(names) != []\n'''\n"
    )
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)
    report = tmp_path / "report.json"
    places = ["--root", str(root), "--paths", "house.py", "--tests", "tests", "--jobs", "1"]
    files = ["--report", str(report), "--equivalents", str(known), "--preload"]
    assert main([*places, "--count", "99", *files]) == 1
    found = json.loads(report.read_text())
    assert (found["drawn"], found["killed"]) == (9, 7)
    assert [entry["reason"] for entry in found["equivalent"]] == ["nobody asks for the order"]
    (survivor,) = found["survivors"]
    assert survivor["place"] == "house.py:12"
    assert survivor["diff"] == "-    return text\n+    return None"
    assert "house.py:12" in capsys.readouterr().out
    assert (root / "house.py").read_text() == PROGRAM
