"""What is installed: declared imports, and wheels and archives that hold what they need."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SOURCES = {
    "fedllm": ROOT / "fedllm",
    "fedllm_client": ROOT / "clients" / "fedllm_client",
    "fedllm_server": ROOT / "server" / "fedllm_server",
}
# Needed by an extra alone, which says what to install where it is missing.
OPTIONAL = {
    "ray": "ray",
    "pyarrow": "parquet",
    "psycopg": "postgres",
    "gguf": "gguf",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "fastapi": "serve",
    "prometheus_client": "serve",
    "tensorboard": "tensorboard",
}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(requirements: list[str]) -> set[str]:
    return {normal(Requirement(text).name) for text in requirements}


def imported(folder: Path) -> dict[str, Path]:
    """First words of all absolute imports, at the top of files and inside functions."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                names = [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            found |= {name.partition(".")[0]: path for name in names}
    return found


@pytest.mark.parametrize("package", SOURCES)
def test_every_import_is_declared(package):
    distributions = metadata.packages_distributions()
    needed = declared(PROJECT["dependencies"])
    for module, path in imported(SOURCES[package]).items():
        if module in sys.stdlib_module_names or module in SOURCES:
            continue
        names = {normal(name) for name in distributions.get(module, [module])}
        extra = OPTIONAL.get(module)
        allowed = declared(PROJECT["optional-dependencies"][extra]) if extra else needed
        assert names & allowed, f"{path} imports {module}, which pyproject.toml does not declare"


def test_every_declared_package_is_used():
    distributions = metadata.packages_distributions()
    used = {
        normal(name)
        for folder in SOURCES.values()
        for module in imported(folder)
        for name in distributions.get(module, [])
    }
    assert declared(PROJECT["dependencies"]) - used == set()


def test_what_is_declared_is_pinned_and_installed_as_declared():
    pins = {
        normal(line.partition("==")[0]): line.partition("==")[2]
        for line in (ROOT / "constraints.txt").read_text().split()
        if "==" in line
    }
    extras = [text for name in PROJECT["optional-dependencies"].values() for text in name]
    for text in [*PROJECT["dependencies"], *extras]:
        requirement = Requirement(text)
        if normal(requirement.name) != "fedllm":
            pin = pins.get(normal(requirement.name))
            assert pin is not None, f"constraints.txt does not pin {requirement.name}"
            assert requirement.specifier.contains(pin, prereleases=True), text


def test_private_functions_of_others_are_capped():
    """A package whose inner parts are used must not change under them."""
    capped = {
        normal(requirement.name)
        for requirement in map(Requirement, PROJECT["dependencies"])
        if any(part.operator in ("<", "==", "~=") for part in requirement.specifier)
    }
    # Called on an object, where no import shows it.
    called = (ROOT / "fedllm/privacy/accounting/accountants.py").read_text()
    assert "accountant._get_dprv(" not in called or "opacus" in capped
    for folder in SOURCES.values():
        for path in sorted(folder.rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and node.module:
                    module = node.module.partition(".")[0]
                    inner = [*node.module.split("."), *(alias.name for alias in node.names)]
                    if module in sys.stdlib_module_names or module in SOURCES:
                        continue
                    if any(re.fullmatch(r"_[a-z]\w*", part) for part in inner):
                        assert module in capped, f"{path} uses {node.module}"


@pytest.mark.parametrize("folder", SOURCES.values(), ids=SOURCES)
def test_types_are_announced(folder):
    assert (folder / "py.typed").is_file()


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The archive of the sources, and a wheel that is built from it."""
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (sources,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sources, wheel


@pytest.mark.slow
def test_the_archive_holds_what_the_tests_need_and_no_results(built):
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for needed in (
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "Makefile",
        "constraints.txt",
        "docs/architecture.md",
        "examples/site.toml",
        "benchmarks/round.py",
        "tests/conftest.py",
        "tests/support/ledger.py",
        "fedllm/py.typed",
        "clients/fedllm_client/py.typed",
        "server/fedllm_server/py.typed",
    ):
        assert needed in names, needed
    # What git would not keep is no part of it, and all that git keeps is.
    first = {name.partition("/")[0] for name in names}
    assert first.isdisjoint({"runs", ".venv", "dist", ".git", "shared", ".mypy_cache"})
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split("\n")
    assert {name for name in tracked if name and (ROOT / name).exists()} <= names


@pytest.mark.slow
def test_the_wheel_works_without_the_sources(built, tmp_path):
    with zipfile.ZipFile(built[1]) as wheel:
        names = set(wheel.namelist())
    for package in SOURCES:
        assert f"{package}/py.typed" in names
    assert "fedllm/reference/schemas/run.schema.json" in names
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == set(SOURCES)
    assert any(name.endswith("LICENSE") for name in names)

    place = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    site = place / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    with zipfile.ZipFile(built[1]) as wheel:
        wheel.extractall(site)
    # Third-party packages alone: nothing that leads to these sources.
    packages = Path(sysconfig.get_path("purelib"))
    sources = {ROOT, ROOT / "clients", ROOT / "server"}
    lines = [str(packages), *(str(one) for one in _linked(packages) if one not in sources)]
    (site / "third_party.pth").write_text("".join(f"{line}\n" for line in lines))

    empty = tmp_path / "empty"
    empty.mkdir()
    for name in ("server.py", "clients.py"):
        (empty / name).write_text("raise RuntimeError('not this file')\n")

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [str(place / "bin" / "python"), *arguments],
            cwd=empty,
            capture_output=True,
            text=True,
            timeout=300,
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = (
        "import fedllm, fedllm_client.app, fedllm_server.loop, fedllm_server.simulation; "
        "print(fedllm.__file__, fedllm_client.app.__file__, fedllm_server.loop.__file__)"
    )
    assert all(str(site) in file for file in run("-c", where).split())
    assert "provision" in run("-m", "fedllm", "--help")
    assert "noise multiplier" in run("-m", "fedllm", "privacy", "plan", "--rounds", "10")
    texts = "from fedllm.audit.report.page import read_texts as r; print(r('en'), r('zh'))"
    assert "报告" in run("-c", texts)


def _linked(folder: Path) -> list[Path]:
    """Folders that another folder of packages leads to."""
    lines = [line for file in folder.glob("*.pth") for line in file.read_text().splitlines()]
    return [Path(line) for line in lines if line.startswith("/") and Path(line).is_dir()]
