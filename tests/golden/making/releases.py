"""Make a kept release: what a coordinator signs of a run's model."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from golden.kept import identity

from fedllm.federation.protocol.releases import Release, ReleasedFile, sign_release
from fedllm.files import write_bytes


def release() -> Release:
    """Return a release with a value in every field."""
    return Release(
        federation="north",
        run="0123456789abcdef",
        name="bank-intents",
        config='name = "bank-intents"\ntask = "classification"\n',
        base="ef" * 32,
        summary={
            "rounds": 12,
            "metrics": {"loss": 0.25, "accuracy": 0.9125, "f1": None},
            "privacy": {"epsilon": 8.0, "delta": 1e-05, "unit": "person"},
            "model": {"parameters": 22713216, "quantization": "none"},
        },
        files=(
            ReleasedFile("adapter_config.json", 812, "01" * 32),
            ReleasedFile("adapter_model.safetensors", 5_368_709_121, "23" * 32),
            ReleasedFile("shared_model.json", 404, "45" * 32),
        ),
        time=datetime(2026, 11, 30, 15, 4, 5, tzinfo=UTC),
    )


def make(folder: Path) -> None:
    """Write ``release``."""
    text = sign_release(release(), identity("coordinator"))
    write_bytes(folder / "release" / "release.json", text.encode())
