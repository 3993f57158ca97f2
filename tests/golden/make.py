"""Write the kept files of one version of the formats, by the code as it is now.

    PYTHONPATH=tests python tests/golden/make.py tests/golden/v4 PART...

Only for adding a next version: what is kept is never made again, since it stands for what is
in the hands of sites and auditors. PART is a file or folder below the version's folder, such as
``round`` or ``ledger/named.sqlite``; only what changed is kept again. No test runs this. Keys are
test keys that anybody can make (`golden.kept.identity`); nonces, the operator's keys and TLS
keys are random.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from golden.making import (
    kits,
    ledgers,
    models,
    pretraining,
    ratings,
    releases,
    rounds,
    runs,
    sealed,
    texts,
)

# Configurations hold absolute paths; these are of no one's machine.
_WORKPLACE = Path("/srv/fedllm")


def main() -> None:
    """Make everything in a workplace, then move what was named to the folder of the version."""
    target, parts = Path(sys.argv[1]), sys.argv[2:]
    if target.exists():
        sys.exit(f"{target} exists: what is kept is never made again")
    shutil.rmtree(_WORKPLACE, ignore_errors=True)
    parts_of_all = (
        texts,
        ledgers,
        models,
        rounds,
        kits,
        runs,
        pretraining,
        releases,
        sealed,
        ratings,
    )
    for part in parts_of_all:
        part.make(_WORKPLACE)
    for path in _WORKPLACE.rglob("*.lock"):
        path.unlink()
    for name in parts:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(_WORKPLACE / name, target / name)
    shutil.rmtree(_WORKPLACE)


if __name__ == "__main__":
    main()
