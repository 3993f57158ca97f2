"""What a simulation reads of its sites' logs and ledgers after each round."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedllm.config import RunConfig, parse
from fedllm.identity.keys import Identity
from fedllm.privacy.accounting.accountants import epsilon
from fedllm.privacy.accounting.events import PoissonGaussian, fold
from fedllm_server import figures
from fedllm_server.figures import SiteFigures

EVENTS = [PoissonGaussian(0.1, 1.0, 10)]


def files(folder: Path, name: str) -> SimpleNamespace:
    return SimpleNamespace(log=folder / f"{name}.jsonl", ledger=folder / f"{name}.sqlite")


def config(**privacy: object) -> RunConfig:
    values = {"name": "bank", "task": "classification", "model": {"path": "m"}}
    data = {"train": "t", "labels": ["one", "two", "three"]}
    return parse(
        RunConfig, {**values, "data": data, "privacy": privacy, "rounds": {"count": 2}}, "test"
    )


@pytest.fixture
def read(tmp_path):
    source = SimpleNamespace(files=lambda name: files(tmp_path, name))
    return SiteFigures(source, ("anne", "bob"), config())


def write(path: Path, *lines: object, end: str = "\n") -> None:
    with path.open("a") as stream:
        stream.write("\n".join(json.dumps(line) for line in lines) + end)


def line(number: int, train: float, run: str = "r") -> dict[str, object]:
    return {"run": run, "round": number, "seconds": {"train": train, "encrypt": train / 4}}


def test_seconds_of_a_round_are_summed_over_the_sites(tmp_path, read):
    write(tmp_path / "anne.jsonl", line(1, 2.0), line(1, 8.0, run="other"), line(9, 8.0))
    write(tmp_path / "bob.jsonl", line(1, 4.0))
    assert read("r", 1) == ({"train": 6.0, "encrypt": 1.5}, {})
    write(tmp_path / "anne.jsonl", line(2, 1.0), line(1, 64.0))
    write(tmp_path / "bob.jsonl", line(2, 0.5))
    assert read("r", 2)[0] == {"train": 1.5, "encrypt": 0.375}
    # Each line is read once.
    assert read("r", 1)[0] == {"train": 0.0, "encrypt": 0.0}


def test_a_site_without_a_log_and_a_line_that_was_cut_off_count_nothing(tmp_path, read):
    (tmp_path / "anne.jsonl").write_text('[1, 2]\n7\n{"run": "r", "rou')
    assert read("r", 1)[0] == {"train": 0.0, "encrypt": 0.0}
    write(tmp_path / "anne.jsonl", end="\n")
    write(tmp_path / "anne.jsonl", line(1, 2.0))
    assert read("r", 1)[0]["train"] == 2.0


def test_only_the_last_round_pays_for_the_cross_checks(tmp_path, monkeypatch):
    private = config(epsilon=4.0, delta=1e-5)
    identity = Identity.generate("anne")
    (tmp_path / "anne.sqlite").touch()
    opened = []

    class Book:
        def events_of_run(self, run):
            return EVENTS if run == "r" else []

    def opens(path, name, signer):
        opened.append((path, name, signer))
        return Book()

    monkeypatch.setattr(figures.Identity, "load", lambda name, keys: identity)
    monkeypatch.setattr(figures.Ledger, "open", opens)
    source = SimpleNamespace(files=lambda name: files(tmp_path, name), keys=lambda name: tmp_path)
    read = SiteFigures(source, ("anne", "bob"), private)
    monkeypatch.setattr(figures, "upper_bound", lambda *asked: asked == (fold(EVENTS), 1e-5) and 3)
    monkeypatch.setattr(
        figures, "epsilon", lambda *asked: SimpleNamespace(value=asked == (EVENTS, 1e-5) and 2)
    )
    # Nobody has begun bob's ledger, so there is nothing to tell of it.
    assert read("r", 1)[1] == {"anne": 3}
    assert read("r", 2)[1] == {"anne": 2}
    assert opened == [(tmp_path / "anne.sqlite", "anne", identity)]


def test_seconds_are_read_beside_figures_that_are_no_numbers(tmp_path, read):
    write(tmp_path / "anne.jsonl", line(1, 2.0) | {"loss": float("nan")})
    assert read("r", 1)[0]["train"] == 2.0


def test_against_all_others_the_site_that_spent_most_counts(tmp_path, monkeypatch):
    spent = {"anne": [PoissonGaussian(0.1, 1.0, 10)], "bob": [PoissonGaussian(0.1, 1.0, 99)]}

    class Book:
        def __init__(self, name):
            self.name = name

        def events_of_run(self, run, view):
            return spent[self.name] if (run, view) == ("r", "colluders") else []

    monkeypatch.setattr(figures.Identity, "load", lambda name, keys: None)
    monkeypatch.setattr(figures.Ledger, "open", lambda path, name, signer: Book(name))
    source = SimpleNamespace(files=lambda name: files(tmp_path, name), keys=lambda name: tmp_path)
    read = SiteFigures(source, ("anne", "bob", "carl"), config(epsilon=4.0, delta=1e-5))
    assert read.against_colluders("r") is None
    for name in spent:
        (tmp_path / f"{name}.sqlite").touch()
    assert read.against_colluders("r") == epsilon(spent["bob"], 1e-5).value
    assert SiteFigures(source, ("anne", "bob"), config()).against_colluders("r") is None
