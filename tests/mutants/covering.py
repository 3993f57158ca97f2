"""A pytest plugin that writes down which test executes which line.

``python -m pytest -p mutants.covering`` with MUTANTS_MAP (the file to write) and MUTANTS_PATHS
(files and folders, separated by colons) in the environment. Only tests that passed are written.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Generator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

Lines = set[tuple[str, int]]


class Recorder:
    """The lines executed since `start`, in the files that are watched."""

    def __init__(self, watched: tuple[str, ...]) -> None:
        self.watched = watched
        self.lines: Lines = set()
        self._names: dict[str, bool] = {}

    def call(self, frame: FrameType, event: str, argument: Any) -> Any:
        """Trace functions of the watched files, and no others."""
        name = frame.f_code.co_filename
        known = self._names.get(name)
        if known is None:
            known = self._names[name] = name.startswith(self.watched)
        return self.line if known else None

    def line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            self.lines.add((frame.f_code.co_filename, frame.f_lineno))
        return self.line


class Covering:
    """Hooks of pytest: lines for each test, with those of the fixtures that it shares."""

    def __init__(self, root: Path, watched: tuple[str, ...], target: Path) -> None:
        self.root = root
        self.recorder = Recorder(watched)
        self.target = target
        self.tests: dict[str, dict[str, Any]] = {}
        self.fixtures: dict[Any, Lines] = {}
        self.seconds = 0.0
        self.passed = True

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self.recorder.lines = set()
        self.seconds, self.passed = 0.0, True
        sys.settrace(self.recorder.call)
        threading.settrace(self.recorder.call)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            self._keep(item)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Generator[None, Any, Any]:
        if fixturedef.scope == "function":
            return (yield)
        outer, self.recorder.lines = self.recorder.lines, set()
        try:
            return (yield)
        finally:
            self.fixtures[fixturedef] = self.recorder.lines
            self.recorder.lines = outer

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds += report.duration
        self.passed = self.passed and report.passed

    def _keep(self, item: pytest.Item) -> None:
        if not self.passed:
            return
        lines = set(self.recorder.lines)
        for definitions in item._fixtureinfo.name2fixturedefs.values():  # type: ignore[attr-defined]
            for definition in definitions:
                lines |= self.fixtures.get(definition, set())
        files: dict[str, list[int]] = {}
        for name, number in sorted(lines):
            files.setdefault(str(Path(name).relative_to(self.root)), []).append(number)
        self.tests[item.nodeid] = {"seconds": round(self.seconds, 3), "lines": files}
        with self.target.open("a") as stream:
            stream.write(json.dumps({"test": item.nodeid, **self.tests[item.nodeid]}) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    root = config.rootpath
    watched = tuple(str(root / path) for path in os.environ["MUTANTS_PATHS"].split(":"))
    config.pluginmanager.register(Covering(root, watched, Path(os.environ["MUTANTS_MAP"])))
