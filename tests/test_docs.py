"""Every file, command, setting and function that the documentation names exists."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import click
import pytest
from pydantic import BaseModel
from support.commands import Named, commands

from fedllm.config import RunConfig, SitePolicy, load_run_config
from fedllm.config.alignment import AlignConfig
from fedllm.identity.config import FederationConfig
from fedllm.pretraining.config import PretrainConfig, load_pretrain_config

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("fedllm", "clients", "server", "tests", "examples", "benchmarks", "docs")
PAGES = [
    ROOT / "README.md",
    ROOT / "README.zh.md",
    *sorted(ROOT.glob("docs/**/*.md")),
    *sorted(ROOT.glob(".github/*.md")),
    *sorted(ROOT.glob("examples/**/*.md")),
]
SCRIPTS = [
    ROOT / "Makefile",
    ROOT / "pyproject.toml",
    *(p for p in sorted(ROOT.glob("examples/**/*")) if p.is_file() and p.suffix != ".md"),
]

page = pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
any_text = pytest.mark.parametrize(
    "path", PAGES + SCRIPTS, ids=lambda path: str(path.relative_to(ROOT))
)


def paths_in(text: str) -> set[str]:
    """Words that start with a folder of the repository; not parts of longer paths."""
    words = re.findall(rf"(?<![\w/.:-])(?:{'|'.join(FOLDERS)})/[\w./*-]*", text)
    return {word.rstrip(".") for word in words}


def test_how_paths_are_recognised():
    text = "See `fedllm/cli.py`, /var/lib/fedllm/kit, docs/audit.md. and examples/*/run.toml"
    assert paths_in(text) == {"fedllm/cli.py", "docs/audit.md", "examples/*/run.toml"}


@any_text
def test_files_exist(path):
    text = path.read_text()
    for word in paths_in(text):
        assert any(ROOT.glob(word.rstrip("/"))), f"there is no {word}"
    for name in re.findall(r"`(\w+\.py)`", text):
        assert any(ROOT.glob(f"[!.]*/**/{name}")), f"there is no file called {name}"


@page
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        leads_to = path.parent / name if name else path
        assert leads_to.exists(), target
        if anchor:
            assert anchor in anchors(leads_to.read_text()), target


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


@page
def test_commands_can_be_read(path):
    for named in commands(path.read_text()):
        named.parse()


def test_how_commands_are_recognised():
    text = """
Run `fedllm audit`, or:

    fedllm ledger show|verify PATH [--json]      # what it does
    sudo apt install fedllm now

```
fedllm pretrain RUN.toml   in a few words
torchrun --no-python fedllm demo --quick
```
"""
    assert {named.arguments for named in commands(text)} == {
        ("audit",),
        ("ledger", "show", "PATH", "--json"),
        ("ledger", "verify", "PATH", "--json"),
        ("pretrain", "RUN.toml"),
        ("demo", "--quick"),
    }


@pytest.mark.parametrize(
    "arguments",
    [("client", "chek"), ("client", "start", "--kitt", "x"), ("ledger", "verify", "--")],
)
@pytest.mark.parametrize("sketched", [True, False])
def test_a_wrong_command_would_be_noticed(arguments, sketched):
    if sketched and "--" in arguments:
        pytest.skip("a sketch may leave out what is needed")
    with pytest.raises(click.UsageError):
        Named(arguments, sketched).parse()


def keys_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from keys_of(kind, f"{prefix}{name}.")


KEYS = {
    key
    for model in (RunConfig, SitePolicy, PretrainConfig, AlignConfig, FederationConfig)
    for key in keys_of(model)
}
SECTIONS = {key.partition(".")[0] for key in KEYS if "." in key}
EXTENSIONS = {"html", "json", "jsonl", "py", "sh", "sqlite", "toml"}
BASES = (ROOT, ROOT / "fedllm", ROOT / "clients", ROOT / "server", ROOT / "fedllm/federation")
PACKAGES = {path.parent.name for base in BASES for path in base.glob("*/__init__.py")}


@cache
def is_code(name: str) -> bool:
    """Tell whether ``a.b.C.d`` is a module of the repository, or defined in one."""
    parts = name.split(".")
    for base in BASES:
        for length in range(len(parts), 0, -1):
            place = base.joinpath(*parts[:length])
            file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
            if file.exists():
                text = file.read_text()
                rest = parts[length:]
                return all(re.search(rf"\b(?:def|class) {n}\b|^{n} =", text, re.M) for n in rest)
    return False


@page
def test_settings_and_functions_exist(path):
    text = path.read_text()
    for name in re.findall(r"`([a-z_]+(?:\.\w+)+)(?: = [^`]*)?`", text):
        first, _, rest = name.partition(".")
        if first in SECTIONS | PACKAGES and rest not in EXTENSIONS:
            assert name in KEYS or is_code(name), f"there is no {name}"
    for name in re.findall(r"--set ([a-z_.]+)=", text):
        assert name in KEYS, f"there is no setting {name}"


def changes(arguments: list[str]) -> list[str]:
    """What --set is given, as a shell hands it over."""
    after = pairwise(arguments)
    return [os.path.expandvars(word) for option, word in after if option == "--set"]


@page
def test_a_run_finds_the_model_that_was_pretrained_before_it(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PWD", str(ROOT))
    for block in re.findall(r"^```\w*\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL):
        made = None
        for command, *rest in (named.arguments for named in commands(f"```\n{block}```")):
            if command == "pretrain" and (ROOT / rest[0]).exists():
                made = load_pretrain_config(ROOT / rest[0], changes(rest))
            if command == "simulate" and made is not None:
                wanted = Path(load_run_config(ROOT / rest[0], changes(rest)).model.path)
                if wanted.suffix == ".toml":
                    assert load_pretrain_config(wanted, []) == made, "that model is refused"
                else:
                    assert wanted == ROOT / "runs" / made.name / "model"


def test_how_code_is_recognised():
    assert is_code("federation.coordinator.rounds.run_round")
    assert is_code("fedllm_server.loop.RoundLoop")
    assert not is_code("federation.coordinator.rounds.walk_round")
    assert not is_code("federation.coordinators")
    assert {"privacy.epsilon", "budget.colluders_epsilon", "data.evaluation"} <= KEYS


# What people ask who have read one page.
ASKED = {
    *("site", "coordinator", "key authority", "auditor", "record", "unit", "policy", "run"),
    *("round", "cohort", "adapter", "update", "gradient", "clipping norm", "noise multiplier"),
    *("sampling rate", "epsilon (ε)", "delta (δ)", "ledger", "reserve", "ceiling", "mask"),
    *("blind sum", "roster", "kit", "canary", "federated learning", "fine-tuning"),
}


def test_the_glossary_says_where_each_term_is_decided():
    text = (ROOT / "docs/glossary.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    terms = {term: where for term, _, where in rows if term != "term"}
    assert terms.keys() >= ASKED
    for term, where in terms.items():
        assert "](" in where, f"{term} has no link"


def test_the_map_of_folders_is_whole():
    text = (ROOT / "docs/architecture.md").read_text()
    for package in PACKAGES - {"fedllm"}:
        assert re.search(rf"`(?:[a-z]+/)?{package}/?`", text), f"{package} is not on the map"
    assert {path.name for path in ROOT.glob("fedllm/federation/*.py")} == {"__init__.py"}
