"""Names of sites for people: from federation.toml to the status, and none that misleads."""

from __future__ import annotations

import dataclasses
import json
import unicodedata
from types import SimpleNamespace

import pytest
from support.kits import federation_config, make_federation
from typer.testing import CliRunner

from fedllm.cli import app
from fedllm.errors import ConfigError, PeerError
from fedllm.files import write_json
from fedllm.identity.keys import Identity
from fedllm.identity.kits import read_kit
from fedllm.identity.roster import Roster, _signed_bytes, _to_plain, sign_roster, verify_roster
from fedllm_server.service import Service

TITLES = {"anne": "Südklinik", "bob": "北京医院"}


def test_titles_go_from_the_operators_file_to_every_kit_and_the_status(tmp_path):
    made = make_federation(tmp_path / "fed", titles=TITLES)
    kits = tmp_path / "fed" / "kits"
    for name, role in (("coordinator", "coordinator"), ("anne", "site"), ("bob", "site")):
        assert read_kit(kits / name, role).roster.titles == TITLES
    assert made.roster.shown("anne") == "Südklinik (anne)"
    assert made.roster.shown("authority") == "authority"
    shown = CliRunner().invoke(app, ["provision", "show", "--dir", str(tmp_path / "fed")])
    assert "北京医院 (bob)" in shown.output


def test_the_status_shows_title_rounds_and_who_is_there(tmp_path):
    from fedllm.config import to_toml
    from fedllm.federation.transport.superlink import NodeState
    from fedllm_server import jobs

    make_federation(tmp_path / "fed", titles=TITLES)
    kit = read_kit(tmp_path / "fed" / "kits" / "coordinator", "coordinator")
    folder = jobs.runs_folder(kit.folder) / "bank"
    # The newest round is that of the newest checkpoint, beyond nine and beyond ninety-nine.
    for number in (2, 9, 10, 101):
        write_json(folder / "checkpoints" / f"round-{number:05d}" / "state.json", {})
    jobs.write_job(folder, jobs.Job("bank", "running", "2026-01-01"))
    (folder / "run.toml").write_text(to_toml(small()))
    said: list[str] = []
    service = Service(kit, ("127.0.0.1", 0), said.append)
    nodes = [NodeState("anne", 7, True, "2026-01-02"), NodeState("bob", 8, False, None)]
    service._report(SimpleNamespace(nodes=lambda: nodes), running=True)
    status = json.loads((kit.folder / "state" / "status.json").read_text())
    assert [(node["name"], node["title"]) for node in status["nodes"]] == list(TITLES.items())
    (run,) = status["runs"]
    assert (run["round"], run["rounds"]) == (101, 120)
    assert said == ["site Südklinik (anne) is connected"]
    done = CliRunner().invoke(app, ["server", "status", "--kit", str(kit.folder)])
    assert "Südklinik (anne)" in done.output
    assert "101 of 120" in done.output


def small():
    from support.federation import small_config

    return small_config("model", rounds={"count": 120})


def test_a_decomposed_title_is_kept_in_its_normal_form():
    title = unicodedata.normalize("NFD", "Südklinik")
    assert title != "Südklinik"
    assert federation_config(titles={"anne": title}).titles == {"anne": "Südklinik"}


@pytest.mark.parametrize(
    ("titles", "words"),
    [
        ({"anne": "Süd", "bob": unicodedata.normalize("NFD", "Süd")}, "have the same name"),
        ({"anne": "Süd", "bob": "SÜD"}, "have the same name"),
        ({"anne": "Bob", "bob": "Rob"}, "is the name of another site"),
        ({"anne": "a\x1b[31mb"}, "cannot be shown"),
        ({"anne": "a\nb"}, "cannot be shown"),
        ({"anne": "\u202eb"}, "cannot be shown"),
        ({"anne": ""}, "cannot be shown"),
        ({"anne": "x" * 101}, "longer than 100 letters"),
        ({"Anne": "Anne"}, "is not the name of a site"),
    ],
)
def test_titles_that_mislead_are_refused(titles, words):
    with pytest.raises(ConfigError, match=words):
        federation_config(titles=titles)


def test_a_name_in_another_script_among_the_sites_is_told_where_it_goes():
    with pytest.raises(ConfigError, match=r"goes under \[titles\]"):
        federation_config(sites=["Südklinik"])


@pytest.fixture
def signed(tmp_path):
    made = make_federation(tmp_path / "fed")
    return made.roster


def test_a_roster_without_titles_is_signed_as_ever(signed):
    plain = _to_plain(signed)
    assert "titles" not in plain
    assert sorted(plain) == [
        "address",
        "authorities_pem",
        "authority",
        "coordinator",
        "expires",
        "federation",
        "issued",
        "min_cohort",
        "node_keys",
        "operator",
        "revoked",
        "sites",
        "version",
    ]
    assert b"titles" not in _signed_bytes(plain)


@pytest.mark.parametrize(
    ("titles", "words"),
    [
        ({"carol": "Süd"}, "unknown site"),
        ({"anne": unicodedata.normalize("NFD", "Süd")}, "normal form C"),
        ({"anne": "Süd", "bob": "süd"}, "the same name for people"),
        ({"anne": "\x1b"}, "cannot be shown"),
    ],
)
def test_a_signed_roster_with_misleading_titles_is_refused(signed, titles, words):
    root = Identity.generate("root")
    text = sign_roster(dataclasses.replace(signed, titles=titles), root)
    with pytest.raises(PeerError, match=words):
        verify_roster(text, root.public_bytes())


def test_a_signed_roster_keeps_its_titles(signed):
    root = Identity.generate("root")
    roster = dataclasses.replace(signed, titles=TITLES)
    assert verify_roster(sign_roster(roster, root), root.public_bytes()) == roster
    assert Roster.from_json(roster.to_json()).titles == TITLES
