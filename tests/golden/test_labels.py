"""Every label under which something is signed, hashed or sent stands in the table of formats."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_table_of_formats_names_every_label_of_the_code():
    code = [
        path
        for folder in ("fedllm", "clients", "server")
        for path in ROOT.glob(f"{folder}/**/*.py")
    ]
    used = {
        label
        for path in code
        for label in re.findall(r"\"(fedllm\.[a-z.-]+\.v\d+)", path.read_text())
    }
    assert len(used) >= 18
    named = set(re.findall(r"fedllm\.[a-z.-]+\.v\d+", (ROOT / "docs" / "formats.md").read_text()))
    assert used == named
