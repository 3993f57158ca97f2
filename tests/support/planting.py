"""Plant bugs into the program one by one, and see which checks of the self-test notice.

``python -m support.planting`` (in ``tests``) prints a table of all plants; with ``--whole`` each
meets every check of the quick self-test, which takes an hour; names pick plants.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path

import pytest
from support.plants_of_charges import CHARGES
from support.plants_of_noise import NOISE

from fedllm.audit.selftest.checks import CHECKS, QUICK, Check, Subject
from fedllm.audit.selftest.run import Result, perform
from fedllm.mechanisms import calibrating, discrete, evaluation, mechanism_of
from fedllm.privacy.accounting import accountants

PLANTS = [*NOISE, *CHARGES]
CHECK = {check.name: check for check in CHECKS}
# What the program remembers of its own arithmetic, which a planted bug would not reach.
REMEMBERING = (
    accountants._estimate,
    accountants.upper_bound,
    calibrating.choose_noise_multiplier,
    mechanism_of,
    discrete._make_grid,
    evaluation._noise_multiplier,
)


def forget():
    for function in REMEMBERING:
        function.cache_clear()


def with_plant(plant, checks: list[Check], folder: Path, material=None) -> list[Result]:
    """Make checks of a program with a bug planted into it."""
    subject = Subject(folder, QUICK)
    if material is not None:
        subject.material = material
    with pytest.MonkeyPatch.context() as patch:
        forget()
        plant(patch)
        found = [perform(check, subject) for check in checks]
    forget()
    return found


def noticed(result: Result) -> bool:
    """Whether a check saw something; one that a planted bug merely breaks has seen nothing."""
    return not result.passed and not result.problem.startswith("stopped by")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of plants' names")
    parser.add_argument("--whole", action="store_true", help="every check, not the one listed")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    seen, asked = 0, 0
    for plant, name in PLANTS:
        if options.names and not any(part in plant.__name__ for part in options.names):
            continue
        checks = list(CHECKS) if options.whole else [CHECK[name]]
        with tempfile.TemporaryDirectory() as folder:
            found = [r for r in with_plant(plant, checks, Path(folder)) if noticed(r)]
        asked, seen = asked + 1, seen + bool(found)
        by = ", ".join(result.name for result in found) or "NOTHING"
        print(f"{plant.__name__.replace('_', ' '):52} | {by}", flush=True)
    print(f"{seen} of {asked} caught")
    return 0 if seen == asked else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
