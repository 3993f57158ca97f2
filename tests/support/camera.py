"""What lies on the disk after each write of a run: what a kill at that instant leaves."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import fedllm.files


class Camera:
    """Copies a run folder after each exchange of a file or folder, and each line."""

    def __init__(self, out: Path, shots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._out, self._shots = out, shots
        self.taken: list[tuple[str, Path]] = []
        replace, append = Path.replace, fedllm.files.append_line

        def replaced(path: Path, target: Path) -> Path:
            done = replace(path, target)
            self._take(Path(target))
            return done

        def appended(path: Path, line: str) -> None:
            append(path, line)
            self._take(path)
            whole = path.read_bytes()
            self._take(path, whole[:-9])

        monkeypatch.setattr(Path, "replace", replaced)
        for module in ("runs.metrics", "privacy.ledger.heads"):
            monkeypatch.setattr(f"fedllm.{module}.append_line", appended)

    def _take(self, path: Path, content: bytes | None = None) -> None:
        if not path.is_relative_to(self._out):
            return
        inner = path.relative_to(self._out)
        if inner.parts[0] in ("identities", "ledgers", "sites"):
            return
        folder = self._shots / f"{len(self.taken):02d}"
        shutil.copytree(self._out, folder / "run")
        if content is not None:
            (folder / "run" / inner).write_bytes(content)
        self.taken.append((str(inner), folder / "run"))
