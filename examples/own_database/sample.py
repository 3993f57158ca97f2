"""A made-up database of notes, for whoever has none of their own at hand.

    python examples/own_database/sample.py notes.db

A table `notes`: 4,000 notes of 1,000 patients, the department that each is for, a number. The same
rows each time.
"""

from __future__ import annotations

import contextlib
import random
import sqlite3
import sys
from pathlib import Path

PATIENTS, NOTES_EACH, SEED = 1000, 4, 17
SAID = {
    "cardiology": (
        "pain in the chest {when}, pulse irregular",
        "short of breath on stairs {when}, ankles swollen",
        "blood pressure high {when}, known heart failure",
        "palpitations {when}, ECG wanted",
    ),
    "orthopaedics": (
        "fell on the {limb} {when}, cannot move it",
        "the {limb} is swollen since a twist {when}",
        "plaster of the {limb} is loose {when}",
        "pain in the {limb} when walking, worse {when}",
    ),
    "dermatology": (
        "red rash on the {limb} {when}, itches",
        "a mole on the {limb} grew {when}",
        "dry skin on the {limb}, cream did not help {when}",
        "blisters on the {limb} {when}, not painful",
    ),
}
FILLED = {
    "when": ("since Monday", "for two weeks", "since last night", "for months", "after a walk"),
    "limb": ("left arm", "right arm", "left knee", "right foot", "shoulder", "back"),
}
AFTER = ("", ", no fever", ", lives alone", ", seen by the GP", ", takes no medicine")


def rows() -> list[tuple[int, str, str, str]]:
    """Return number, patient, note and department of each note."""
    draw = random.Random(SEED)  # noqa: S311 - texts, no secrets
    found = []
    for patient in range(PATIENTS):
        department = draw.choice(sorted(SAID))
        for _ in range(NOTES_EACH):
            filled = {name: draw.choice(words) for name, words in FILLED.items()}
            note = draw.choice(SAID[department]).format(**filled) + draw.choice(AFTER)
            found.append((len(found) + 1, f"P-{patient:04}", note, department))
    return found


def write(path: Path) -> None:
    """Write the database, in place of none."""
    if path.exists():
        sys.exit(f"{path} is there already; name another file")
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute(
            "CREATE TABLE notes (id INTEGER, patient TEXT, note TEXT, department TEXT)"
        )
        database.executemany("INSERT INTO notes VALUES (?, ?, ?, ?)", rows())
        database.commit()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("which file shall be written? For example: sample.py notes.db")
    write(Path(sys.argv[1]))
