"""Numerical tests as other processors round: what runs, what is left out, and that it is said."""

from __future__ import annotations

import sys

import processors
import pytest
from processors import LEFT_OUT, NUMERICAL, REPOSITORY, SETTINGS, features, main, run

OLD = "processor\t: 0\nflags\t\t: fpu sse2 avx2 fma\n\nprocessor\t: 1\nflags\t\t: fpu\n"


def test_what_runs_is_there():
    assert all((REPOSITORY / path).exists() for path in (*NUMERICAL, *LEFT_OUT))


def test_features_are_the_first_processors_and_none_where_linux_names_none():
    assert features(OLD) == {"fpu", "sse2", "avx2", "fma"}
    assert features("CPU part : 0xd0c\n") == frozenset()


def test_each_setting_has_its_line_also_those_that_the_processor_lacks(monkeypatch, capsys):
    monkeypatch.setattr(processors.Path, "read_text", lambda self: OLD)
    asked = []
    monkeypatch.setattr(processors, "run", lambda s, threads: asked.append((s.name, threads)) or [])
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(SETTINGS) + 1
    assert sorted(asked) == [("AVX2", 2), ("default", 1)]
    assert "NOT RUN  AVX2, 1 thread: it is this processor's own" in lines[1]
    assert "NOT RUN  AVX-512, 1 thread: this processor lacks avx512f" in lines[2]
    assert "amx_tile" in lines[3]


def test_what_is_asked_for_by_name_is_run(monkeypatch):
    monkeypatch.setattr(processors.Path, "read_text", lambda self: OLD)
    asked = []
    monkeypatch.setattr(processors, "run", lambda s, threads: asked.append((s.name, threads)) or [])
    assert main(["AVX2", "AVX-512"]) == 0
    assert sorted(asked) == [("AVX2", 1), ("AVX2", 2)]


def test_one_failure_fails_all_and_is_named(monkeypatch, capsys):
    monkeypatch.setattr(processors.Path, "read_text", lambda self: OLD)
    monkeypatch.setattr(
        processors,
        "run",
        lambda s, threads: ["self-test"] if (s.name, threads) == ("default", 1) else [],
    )
    assert main([]) == 1
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("FAIL")]
    assert "default, 1 thread: self-test" in line
    assert main(["AVX3"]) == 2


@pytest.mark.parametrize("threads", [1, 2])
def test_the_libraries_hear_of_it(monkeypatch, threads, capsys):
    code = (
        "import os, sys, torch;"
        "print(torch.backends.cpu.get_cpu_capability(), torch.get_num_threads());"
        "sys.exit(1)"
    )
    monkeypatch.setattr(
        processors, "commands", lambda python: {"probe": [sys.executable, "-c", code]}
    )
    assert run(SETTINGS[0], threads) == ["probe"]
    assert f"DEFAULT {threads}" in capsys.readouterr().out
