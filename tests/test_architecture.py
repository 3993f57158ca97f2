"""The arrows between the folders, as the source itself has them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STRANGERS = ("privacy", "encryption", "identity", "models", "data")
# What Flower documents for its users; everything else may change in any version.
PUBLIC_FLOWER = {"flwr", "flwr.app", "flwr.clientapp", "flwr.serverapp"}
TRANSPORT = "fedllm/federation/transport/"


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Every module that a file imports, at its top or inside a function."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert found
    return found


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def test_the_library_does_not_know_the_programs():
    for path in files("fedllm"):
        if path.parent != ROOT / "fedllm" / "commands":
            for module in imports(path):
                assert not within(module, "fedllm_client"), path
                assert not within(module, "fedllm_server"), path


@pytest.mark.parametrize("folder", STRANGERS)
def test_strangers_do_not_know_each_other(folder):
    for path in files(f"fedllm/{folder}"):
        for module in imports(path):
            for other in set(STRANGERS) - {folder}:
                assert not within(module, f"fedllm.{other}"), path


def test_nothing_installed_needs_the_tests_or_benchmarks():
    for path in files("fedllm", "clients", "server"):
        for module in imports(path):
            assert not any(within(module, name) for name in ("tests", "support", "benchmarks"))


def test_flowers_private_modules_stay_where_messages_are_carried():
    found = {
        str(path.relative_to(ROOT))
        for path in files("fedllm", "clients", "server")
        for module in imports(path)
        if within(module, "flwr") and not is_public(module)
    }
    assert found
    assert all(path.startswith(TRANSPORT) for path in found), found


def is_public(module: str) -> bool:
    package, _, name = module.rpartition(".")
    return module in PUBLIC_FLOWER or (package in PUBLIC_FLOWER and name[:1].isupper())


def test_how_imports_are_seen(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("import a.b\ndef f():\n    from flwr.supercore import run\n")
    assert set(imports(path)) == {"a.b", "flwr.supercore", "flwr.supercore.run"}
    assert is_public("flwr.app.Context")
    assert not is_public("flwr.app.message")
    assert not is_public("flwr.server.Driver")


def calls(path: Path) -> set[str]:
    """The dotted names that a file uses, such as ``json.dumps``."""
    return {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }


# Who writes JSON for a file of its own; what is signed or hashed is `fedllm.canonical`'s. The
# authority's log is signed in the form that it has on disk.
OWN_JSON = {
    "fedllm/federation/authority/round_log.py",
    "fedllm/federation/site/site.py",
    "fedllm/identity/enrolment.py",
    "fedllm/identity/roster.py",
    "fedllm/privacy/ledger/heads.py",
}


def test_what_is_signed_or_hashed_has_one_form():
    signing = files(*(f"fedllm/{name}" for name in ("identity", "encryption", "federation")))
    for path in (*signing, *files("fedllm/privacy")):
        used = calls(path)
        assert "hashlib.sha256" not in used, path
        assert "json.dumps" not in used or str(path.relative_to(ROOT)) in OWN_JSON, path
        # An answer holds a roster that was signed a moment before.
        assert "json.loads" not in used or path.name == "enrolment.py", path


def test_hexadecimal_digits_are_read_in_one_place():
    found = [
        path for path in files("fedllm", "clients", "server") if "bytes.fromhex" in calls(path)
    ]
    assert [str(path.relative_to(ROOT)) for path in found] == ["fedllm/canonical.py"]
