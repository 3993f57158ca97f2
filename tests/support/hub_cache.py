"""A hub's cache on this machine, as the hub's own program leaves it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Put a checkpoint into the cache under a repository's name; returns its snapshot."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(checkpoint: Path, name: str = "north/tiny") -> Path:
        place = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        snapshot = place / "snapshots" / REVISION
        for folder in (snapshot, place / "blobs", place / "refs"):
            folder.mkdir(parents=True, exist_ok=True)
        (place / "refs" / "main").write_text(REVISION)
        for file in checkpoint.iterdir():
            blob = place / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
            shutil.copy(file, blob)
            (snapshot / file.name).symlink_to(f"../../blobs/{blob.name}")
        return snapshot

    return put


def named_by(folder: Path, name: object) -> Path:
    """Let an adapter name its base model so."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": name}))
    return folder
