"""What ``fedllm doctor`` says of machines that lack something."""

from __future__ import annotations

import importlib
import json
import socket

import pytest
from typer.testing import CliRunner

from fedllm.cli import app
from fedllm.commands import doctor as doctor_module


def looked() -> tuple[int, dict[str, dict]]:
    done = CliRunner().invoke(app, ["doctor", "--json"])
    return done.exit_code, {one["what"]: one for one in json.loads(done.output)}


@pytest.fixture(autouse=True)
def _loads_at_once(monkeypatch):
    """Loading everything takes long; another test process has it loaded already."""
    monkeypatch.setattr(doctor_module, "_LOADED", ("torch", "tenseal"))


@pytest.mark.slow
def test_this_machine_is_fit(monkeypatch):
    code, found = looked()
    assert code == 0, found
    assert found["python"]["state"] == found["folder"]["state"] == "ok"
    assert found["torch"]["words"]
    shown = CliRunner().invoke(app, ["doctor"])
    assert max(map(len, shown.output.splitlines())) < 200
    assert "ok    python" in shown.output


def test_a_package_that_does_not_load_is_wrong(monkeypatch):
    def broken(name):
        raise OSError("a library of the system is missing")

    monkeypatch.setattr(importlib, "import_module", broken)
    monkeypatch.setattr(doctor_module, "LOOKS", (doctor_module.packages,))
    code, found = looked()
    assert code == 1
    assert found["tenseal"]["words"] == "does not load: OSError"


def test_what_is_missing_is_named_with_its_extra(monkeypatch):
    real = doctor_module._version
    gone = {"pyarrow", "safetensors"}
    monkeypatch.setattr(
        doctor_module, "_version", lambda name: None if name in gone else real(name)
    )
    monkeypatch.setattr(doctor_module, "_LOADED", ())
    monkeypatch.setattr(doctor_module, "LOOKS", (doctor_module.packages, doctor_module.extras))
    code, found = looked()
    assert code == 1
    assert "safetensors" in found["packages"]["words"]
    assert "pyarrow" in found["extra parquet"]["words"]
    assert "'.[parquet]'" in found["extra parquet"]["remedy"]
    assert "parquet" not in found["extras"]["words"]


@pytest.mark.slow
def test_little_room_and_no_model_are_told(monkeypatch):
    monkeypatch.setattr(doctor_module, "_LITTLE_MEMORY_GIB", 1e9)
    monkeypatch.setattr(doctor_module, "locations_of_models", list)

    def refused(*_):
        raise OSError(1, "not permitted")

    monkeypatch.setattr(socket, "create_server", refused)
    code, found = looked()
    assert code == 0
    states = {what: found[what]["state"] for what in ("memory", "models", "loopback")}
    assert set(states.values()) == {"note"}
    assert all(found[what]["remedy"] for what in states)
