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
from fedllm.errors import ConfigError, PeerError, RefusedError
from fedllm.federation.authority.round_log import RoundLog, round_log_path
from fedllm.files import write_json
from fedllm.identity.enrolment import accept, enroll, read_answer, read_request
from fedllm.identity.federation_state import load_state
from fedllm.identity.keys import Identity
from fedllm.identity.kits import read_kit
from fedllm.identity.provisioning import provision, sign
from fedllm.identity.roster import Roster, _signed_bytes, _to_plain, sign_roster, verify_roster
from fedllm.identity.titles import complaint, safe_name, titles_beside
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


def join(folder, kit, name):
    enroll(kit, "site", name)
    _, answer = sign(folder, read_request((kit / "request.json").read_text()))
    accept(kit, read_answer(answer.read_text()))
    return read_kit(kit, "site")


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("Südklinik", "sudklinik"),
        (unicodedata.normalize("NFD", "Südklinik"), "sudklinik"),
        ("北京医院", "site-077bf4a77f3d"),
        ("St. Anne's", "st-anne-s"),
        ("x" * 100, "x" * 50),
    ],
)
def test_a_site_enrols_under_the_name_that_its_people_write(tmp_path, given, name):
    title = unicodedata.normalize("NFC", given)
    make_federation(tmp_path / "fed")
    kit = join(tmp_path / "fed", tmp_path / "kit", given)
    assert kit.name == name
    assert kit.roster.shown(name) == f"{title} ({name})"
    # Once more is the same; and the operator's next change keeps the title.
    assert enroll(tmp_path / "kit", "site", given).title == title
    provision(federation_config(sites=["anne", "bob", "carol"]), tmp_path / "fed")
    assert load_state(tmp_path / "fed").titles == {name: title}
    roster = json.loads((tmp_path / "fed" / "roster.json").read_text())["roster"]
    assert roster["titles"] == {name: title}


def test_the_operators_file_has_the_last_word_on_a_title(tmp_path):
    make_federation(tmp_path / "fed")
    join(tmp_path / "fed", tmp_path / "kit", "Südklinik")
    changed = federation_config(titles={"sudklinik": "Klinik Süd"})
    assert provision(changed, tmp_path / "fed").roster.titles == {"sudklinik": "Klinik Süd"}


def test_a_request_whose_title_is_that_of_another_site_is_refused(tmp_path):
    make_federation(tmp_path / "fed", titles={"anne": "Südklinik"})
    request = enroll(tmp_path / "kit", "site", "SÜDKLINIK")
    with pytest.raises(RefusedError, match="have the same name for people") as caught:
        sign(tmp_path / "fed", request)
    assert "[titles]" in caught.value.remedy
    assert load_state(tmp_path / "fed").member("sudklinik") is None


@pytest.mark.parametrize("name", ["a\x1bb", "\u202eb", " ", "a\nb", "authority", "ü" * 101])
def test_a_name_that_cannot_be_shown_makes_no_kit(tmp_path, name):
    with pytest.raises(ConfigError):
        enroll(tmp_path / "kit", "site", name)
    assert not (tmp_path / "kit").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Klinik Süd / Abt. 3", "it holds '/'"),
        ("Klinik Süd \\ Abt. 3", "it holds '\\'"),
        ("---", "no letter and no digit"),
        ("authority", "the name of another role"),
        ("ü" * 101, "longer than 100 letters"),
    ],
)
def test_what_a_name_must_not_hold_is_said(tmp_path, name, words):
    with pytest.raises(ConfigError) as caught:
        enroll(tmp_path / "kit", "site", name)
    assert words in caught.value.message
    assert "any script" in caught.value.remedy
    assert "lower-case" not in str(caught.value), "which is not asked for"


def test_a_title_in_a_request_is_covered_by_its_proof(tmp_path):
    enroll(tmp_path / "kit", "site", "Südklinik")
    path = tmp_path / "kit" / "request.json"
    value = json.loads(path.read_text())
    value["request"]["title"] = "Nordklinik"
    with pytest.raises(PeerError):
        read_request(json.dumps(value))


def test_a_request_without_a_title_is_written_as_ever(tmp_path):
    enroll(tmp_path / "kit", "site", "anne")
    written = json.loads((tmp_path / "kit" / "request.json").read_text())["request"]
    assert sorted(written) == ["name", "node_key", "role", "server_request", "signing_key"]
    make_federation(tmp_path / "fed")
    state = json.loads((tmp_path / "fed" / "federation.json").read_text())
    assert all("title" not in member for member in state["members"])


def test_enrolling_says_both_names(tmp_path):
    done = CliRunner().invoke(
        app, ["client", "enroll", "--name", "Südklinik", "--out", str(tmp_path / "kit")]
    )
    assert done.exit_code == 0
    assert "Südklinik (sudklinik)" in done.output


def test_titles_beside_a_ledger_are_found_and_never_believed_blindly(tmp_path):
    made = make_federation(tmp_path / "fed", titles=TITLES)
    ledger = tmp_path / "fed" / "kits" / "anne" / "state" / "ledger.sqlite"
    assert titles_beside(ledger) == TITLES
    run = tmp_path / "run"
    run.mkdir()
    (run / "roster.json").write_text(Roster(b"a" * 32, {}, titles={"x": "Süd"}).to_json())
    assert titles_beside(run) == titles_beside(run / "ledgers" / "x.sqlite") == {"x": "Süd"}
    for content in (
        "{",
        "[]",
        '{"titles": 3}',
        '{"titles": {"x": 3}}',
        '{"titles": {"x": "\\u202e"}}',
    ):
        (run / "roster.json").write_text(content)
        assert titles_beside(run) == {}
    assert made.roster.titles == TITLES


def test_the_log_of_the_key_authority_shows_titles(tmp_path):
    made = make_federation(tmp_path / "fed", titles=TITLES)
    folder = tmp_path / "fed" / "kits" / "authority"
    kit = read_kit(folder, "authority")
    path = round_log_path(kit.folder)
    path.parent.mkdir(exist_ok=True)
    statement = SimpleNamespace(series="f00d", round=1, attempt=1)
    RoundLog(path, kit.identity)._append("opened", statement, ("anne", "bob"))
    shown = CliRunner().invoke(app, ["authority", "log", "--kit", str(folder)])
    assert "Südklinik (anne), 北京医院 (bob)" in shown.output, shown.exception
    assert made.roster.titles == TITLES


def test_titles_are_looked_for_two_folders_up_and_no_further(tmp_path):
    roster = Roster(b"a" * 32, {}, titles={"x": "Süd"}).to_json()
    (tmp_path / "roster.json").write_text(roster)
    assert titles_beside(tmp_path / "ledgers" / "x.sqlite") == {"x": "Süd"}
    assert titles_beside(tmp_path / "strange" / "ledgers" / "x.sqlite") == {}
    # Of a relative path, too.
    (tmp_path / "roster.json").write_text(" " * (16 * 2**20 - len(roster.encode())) + roster)
    assert titles_beside(tmp_path) == {"x": "Süd"}
    (tmp_path / "roster.json").write_text(" " * (16 * 2**20 + 1 - len(roster.encode())) + roster)
    assert titles_beside(tmp_path) == {}


def test_a_safe_name_has_fifty_letters_and_no_hyphen_at_its_ends():
    assert safe_name("Ä" * 51) == "a" * 50
    assert safe_name("a" * 49 + " b") == "a" * 49
    assert safe_name("--Süd & Nord--") == "sud-nord"
    made = safe_name("北京医院")
    assert made == safe_name("北京医院")
    assert made.startswith("site-")
    assert len(made) == len("site-") + 12


def test_a_title_may_have_a_hundred_letters():
    assert complaint({"x": "a" * 100}) is None
    assert complaint({"x": "a" * 101}) == ("the name for people of 'x' is longer than 100 letters")
    assert complaint({"": "a" * 101}) == "it is longer than 100 letters"
    assert complaint({"x": "X"}) is None, "its own name is no other site's"
    assert complaint({"x": "Y", "y": "Z"}) == (
        "the name for people of 'x' is the name of another site: 'Y'"
    )
