"""How a script finds the base model that it is called with, and knows that it is the right one."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

_PACKAGE = re.compile(r"package:[A-Za-z_]\w*(?:/[\w-][\w.-]*)*", re.ASCII)

_WITH_BASE = """if len(sys.argv) < 3:
    sys.exit("usage: python {script} BASE TEXT...")
base, *texts = sys.argv[1:]
{found}if not (Path(base) / "config.json").is_file():
    sys.exit(f"{{base}} is no folder of a base model; README.md names the one that is needed")
"""

_IN_A_PACKAGE = """if base.startswith("package:"):
    from importlib.util import find_spec

    name, _, inner = base.removeprefix("package:").partition("/")
    package = find_spec(name)
    if package is None:
        sys.exit(f"the Python package {name}, which holds the base model, is not installed")
    base = Path(package.submodule_search_locations[0]) / inner
"""

# Another base of the same shape would answer, too, and wrongly.
_CHECKED = """digest = hashlib.sha256()
for path in sorted(Path(base).glob("*.safetensors")):
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
if digest.hexdigest() != "{weights}":
    sys.exit(f"{{base}} is not the base model that this is for; README.md names the one")
"""

_WITHOUT_BASE = """if len(sys.argv) < 2:
    sys.exit("usage: python {script} TEXT...")
base, texts = HERE, sys.argv[1:]
"""


def weights_digest(folder: Path) -> str:
    """Return the SHA-256 of a base's files of weights, one after another by their names."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    return digest.hexdigest()


def arguments(location: str, base: bool) -> str:
    """Return what a script is called with, in words.

    Parameters
    ----------
    location : str
        Where the run had its base.
    base : bool
        Whether the script is called with one.
    """
    if not base:
        return "TEXT..."
    where = f", or {_package(location)}" if _package(location) else ""
    return f"BASE TEXT...\n\nBASE is the base model's folder{where}."


def given(script: str, location: str, base: bool, weights: str) -> str:
    """Return the lines that read a script's arguments.

    Parameters
    ----------
    script : str
        Its name.
    location, base
        As in `arguments`.
    weights : str
        Of `weights_digest`; where it is empty the base is taken as it is.
    """
    if not base:
        return _WITHOUT_BASE.format(script=script)
    found = _IN_A_PACKAGE if _package(location) else ""
    checked = _CHECKED.format(weights=weights) if weights else ""
    return _WITH_BASE.format(script=script, found=found) + checked


def _package(location: str) -> str:
    """Return in which installed package a base lies; a script holds no other words of a run."""
    return location if _PACKAGE.fullmatch(location) else ""
