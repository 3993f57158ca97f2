"""The run that puts small faults into the program: on a program small enough to know them all."""

from __future__ import annotations

import json
import subprocess
import tomllib
from pathlib import Path

import pytest
from mutants import running
from mutants.__main__ import EQUIVALENTS, main
from mutants.drawing import constant_of, lines_that_use, mutants_of

PROGRAM = '''"""Doors."""


def may_enter(age, names):
    """Whether anybody may."""
    if age < 18:
        raise ValueError(f"{age + 1} is too young")
    return sorted(names, key=len) != []


def unused(text: str = "a"):
    return text


_PATIENCE_S = 5
_STRANGE = 7
'''

TESTS = """import pytest
from house import may_enter

def test_age():
    may_enter(18, ["a"])
    with pytest.raises(ValueError):
        may_enter(17, ["a"])
"""

SLOW_TEST = """import time
import house

def test_nobody():
    time.sleep(0.3)
    assert house.may_enter(18, []) is False
"""

READER = """from pathlib import Path

def test_no_number_is_strange():
    assert "_STRANGE = 7" in Path("house.py").read_text()
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
            "_PATIENCE_S = 6",
            "_PATIENCE_S = 4",
            "_STRANGE = 8",
            "_STRANGE = 6",
        ]
    )


def test_a_number_that_stays_the_same_is_no_mutant() -> None:
    assert mutants_of("p", b"x = 1e150\n") == []


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


@pytest.mark.parametrize(
    "text",
    [
        '"a" + b',
        "'text'",
        "f'{1 + 2}'",
        "None",
        "[a] + [b]",
        "TypeVar('A', int, str)",
        "suppress(a, b)",
    ],
)
def test_words_and_lists_are_left_alone(text: str) -> None:
    assert mutants_of("p", f"x = {text}\n".encode()) == []


USES = b"""_WAIT_S, _LEAST = 1.0, 2
_MOST: int = 9

def wait(least=3):
    return [_WAIT_S,
            least]

def least():
    return _LEAST + 4

async def most(): return _MOST

async def later(x):
    return x + 5

class Door:
    width: int = 7

    def wide(self):
        return self.width > 8

def door():
    return Door()
"""


@pytest.mark.parametrize(
    ("number", "lines", "constant"),
    [
        ("1.0", {5, 9}, "_WAIT_S"),
        ("2", {5, 9}, "_LEAST"),
        ("9", {11}, None),
        ("3", {4, 5, 6}, None),
        ("4", {9}, None),
        ("5", {14}, None),
        ("7", {19, 20, 23}, None),
        ("8", {20}, None),
    ],
)
def test_which_lines_use_what_changes(number: str, lines: set[int], constant: str | None) -> None:
    """The import of a module executes its constants once, in whichever test comes first."""
    found = [m for m in mutants_of("p", USES) if USES[m.start : m.end].decode() == number]
    assert found
    for mutant in found:
        assert lines_that_use(mutant, USES) == lines
        assert constant_of(mutant, USES) == constant


def test_the_quickest_tests_come_first_and_one_always(tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(USES)
    tests = [running.CoveredTest(f"t::{n}", float(n), {"p": frozenset({9})}) for n in "3214"]
    tests.append(running.CoveredTest("t::0", 0.0, {"p": frozenset({1})}))
    mutant = next(m for m in mutants_of("p", USES) if m.first_line == 9)
    found = running.tests_for(mutant, tmp_path, tests)
    assert [test.name for test in found] == ["t::1", "t::2", "t::3", "t::4"]
    assert [test.name for test in running.within(found, 3.0)] == ["t::1", "t::2"]
    assert [test.name for test in running.within(found, 0.5)] == ["t::1"]


def test_a_test_that_reads_a_constant_executes_no_line_that_uses_it(tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(USES)
    (tmp_path / "reads").write_text("assert p._MOST == 9")
    tests = [running.CoveredTest("reads::it", 2.0, {}), running.CoveredTest("else::x", 1.0, {})]
    mutant = next(m for m in mutants_of("p", USES) if m.first_line == 2)
    assert running.tests_for(mutant, tmp_path, tests) == [tests[0]]


def test_what_an_import_executes_is_tried_by_who_reads_it_and_then_by_the_whole_module(
    tmp_path: Path,
) -> None:
    """The import is traced in the first test alone; a class may have no line of its own at all."""
    (tmp_path / "uses.py").write_bytes(USES)
    (tmp_path / "other.py").write_text("import uses\n\ndef open():\n    return uses.Door\n")
    (tmp_path / "test_names.py").write_text("uses.Door()\n")
    (tmp_path / "test_doors.py").write_text("Doors\n")
    (tmp_path / "test_uses.py").write_text("")
    own, other = "uses.py", "other.py"
    traced: dict[str, tuple[float, dict[str, set[int]]]] = {
        "test_a.py::method": (8.0, {own: {20}}),
        "test_a.py::elsewhere": (7.0, {other: {4}}),
        "test_names.py::names": (6.0, {}),
        "test_uses.py::own": (5.0, {}),
        "test_a.py::module": (4.0, {own: {14}}),
        "test_a.py::imports": (3.0, {own: {17}}),
        "test_doors.py::nothing": (1.0, {other: {3}}),
    }
    tests = [
        running.CoveredTest(name, seconds, {path: frozenset(n) for path, n in lines.items()})
        for name, (seconds, lines) in traced.items()
    ]
    inside, outside = (
        next(m for m in mutants_of(own, USES) if m.first_line == line) for line in (20, 17)
    )
    assert running.tests_for(inside, tmp_path, tests) == [tests[0]]
    found = [test.name.partition("::")[2] for test in running.tests_for(outside, tmp_path, tests)]
    assert found == ["own", "names", "elsewhere", "method", "imports", "module"]


def test_what_is_explained_is_still_there() -> None:
    """An entry whose text was changed explains nothing any more."""
    root = EQUIVALENTS.parent.parent.parent
    entries = tomllib.loads(EQUIVALENTS.read_text())
    for entry in entries["mutant"]:
        before = [line[1:] for line in entry["diff"].splitlines() if line.startswith("-")]
        assert "\n".join(before) in (root / entry["path"]).read_text(), entry["diff"]
    for entry in entries["constant"]:
        source = (root / entry["path"]).read_bytes()
        found = [m for m in mutants_of("p", source) if constant_of(m, source) == entry["name"]]
        assert found, entry["name"]


@pytest.mark.slow
def test_survivors_are_named_and_the_program_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    (root / "tests").mkdir(parents=True)
    (root / "house.py").write_text(PROGRAM)
    (root / "pytest.ini").write_text("[pytest]\n")
    (root / "tests" / "test_house.py").write_text(TESTS)
    (root / "tests" / "test_nobody.py").write_text(SLOW_TEST)
    (root / "tests" / "test_errors.py").write_text(READER)
    known = tmp_path / "known.toml"
    known.write_text(
        "[[mutant]]\npath = 'house.py'\nreason = 'nobody asks for the order'\ndiff = '''\n"
        "-    return sorted(names, key=len) != []\n+    return list(names) != []\n'''\n"
        "[[constant]]\npath = 'house.py'\nname = '_PATIENCE_S'\nreason = 'only waits'\n"
    )
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)
    report = tmp_path / "report.json"
    places = [
        "--root",
        str(root),
        "--paths",
        "house.py",
        "--tests",
        "tests",
        "--jobs",
        "1",
        "--budget-s",
        "0.1",
    ]
    files = ["--report", str(report), "--equivalents", str(known), "--preload"]
    assert main([*places, "--count", "99", *files]) == 1
    found = json.loads(report.read_text())
    assert (found["drawn"], found["killed"]) == (13, 9)
    reasons = [entry["reason"] for entry in found["equivalent"]]
    assert sorted(reasons) == ["nobody asks for the order", "only waits", "only waits"]
    (survivor,) = found["survivors"]
    assert survivor["place"] == "house.py:12"
    assert survivor["diff"] == "-    return text\n+    return None"
    assert "house.py:12" in capsys.readouterr().out
    assert (root / "house.py").read_text() == PROGRAM
