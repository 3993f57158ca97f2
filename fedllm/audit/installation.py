"""What is installed: versions and a fingerprint of fedllm's own code."""

from __future__ import annotations

import hashlib
import platform
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

PACKAGES = (
    "fedllm",
    "torch",
    "opacus",
    "peft",
    "transformers",
    "tenseal",
    "flwr",
    "cryptography",
    "dp-accounting",
)


def installed_versions() -> dict[str, str]:
    """Return the versions of the packages that a run rests on; those that are installed."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def code_fingerprint() -> str:
    """Return SHA-256 over the names and contents of all of fedllm's Python files.

    Two installations of the same release have the same; one changed character changes it.
    """
    digest = hashlib.sha256()
    for package in ("fedllm", "fedllm_client", "fedllm_server"):
        spec = find_spec(package)
        for root in map(Path, (spec.submodule_search_locations or []) if spec else []):
            for path in sorted(root.rglob("*.py")):
                digest.update(f"{package}/{path.relative_to(root).as_posix()}\0".encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def describe() -> dict[str, object]:
    """Return versions, Python and the code's fingerprint as plain values."""
    return {
        "versions": installed_versions(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "code_sha256": code_fingerprint(),
    }
