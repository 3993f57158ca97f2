"""How a site stands: in one look, in words, and as plain values."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console
from support.overview import POLICY, ROUND, Site, sent_line, under_way

from fedllm.canonical import sha256_hex
from fedllm.config import SitePolicy, parse
from fedllm.config.toml import parse_toml
from fedllm.errors import ConfigError
from fedllm.federation.site.memory import SiteMemory
from fedllm.identity.keys import Identity
from fedllm.overview.allowed import allowed
from fedllm.overview.as_json import as_json
from fedllm.overview.kit import read_site_kit
from fedllm.overview.terminal import print_standing
from fedllm.overview.wording import budget_words, left_text, running_words, state_of
from fedllm.privacy.ledger.entries import Head


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path)
    made.state.mkdir(exist_ok=True)
    return made


def text_of(standing):
    stream = io.StringIO()
    print_standing(standing, Console(file=stream, width=160))
    return stream.getvalue()


def test_a_site_that_never_ran(site):
    found = site.look()()
    assert (found.budget, found.running, found.troubles) == (None, None, ())
    assert state_of(found).word == "not running"
    text = text_of(found)
    assert "Nothing was spent yet" in text
    assert "Nothing was sent yet" in text


def test_a_site_at_work(site):
    site.charge([1, 2, 3])
    site.charge([4], released=False)
    site.did(sent_line(1), sent_line(2), sent_line(3))
    site.note("under_way.json", under_way())
    digest = sha256_hex(site.policy.read_bytes())
    with site.running(policy_sha256=digest):
        found = site.look()()
        assert state_of(found).word == "running"
        assert not found.changed
        text = text_of(found)
    for words in (
        "Site anne of north: RUNNING",
        "Connected to the coordinator at 127.0.0.1:",
        "Run 'ward', round 4 of 10: training on this site's records, since 2026-12-01 09:30 UTC",
        "is reserved: charged for rounds of which no result left this site",
        "At this rate the budget ends in ",
        "36,864 numbers",
        str(site.policy),
    ):
        assert words in text, words


def test_the_password_of_a_database_is_neither_needed_nor_shown(site, monkeypatch):
    monkeypatch.setenv("FEDLLM_DB_PASSWORD", "secret")
    text = text_of(site.look()())
    assert "secret" not in text
    monkeypatch.delenv("FEDLLM_DB_PASSWORD")
    assert site.look()().policy is not None
    assert "db.internal" not in text


def test_a_policy_that_was_changed_since_the_service_started_is_not_taken_for_the_one_in_force(
    site,
):
    with site.running(policy_sha256=sha256_hex(site.policy.read_bytes())):
        assert not site.look()().changed
        site.policy.write_text(POLICY.replace("8.0", "9.0"))
        found = site.look()()
        assert found.changed
        assert "goes by what stood there before" in text_of(found)
    # Without a service none is in force.
    assert not site.look()().changed


def test_the_policy_of_the_service_is_known_without_naming_it(site):
    with pytest.raises(ConfigError, match="its policy is not known"):
        site.look(policy=False)
    with site.running():
        pass
    assert site.look(policy=False).policy_file == site.policy


@pytest.mark.parametrize("text", ["nonsense", "[budget]\nepsilon = -1\n", None])
def test_a_policy_that_cannot_be_read_is_said_and_hides_nothing_else(site, text):
    look = site.look()
    if text is None:
        site.policy.unlink()
    else:
        site.policy.write_text(text)
    site.did(sent_line(1))
    found = look()
    assert len(found.troubles) == 1
    assert found.policy is None
    assert len(found.traffic.sent) == 1
    assert "PROBLEM" in text_of(found)
    assert "Nothing was spent" not in text_of(found)


def test_a_ledger_that_was_set_back_is_said_and_no_figure_of_it_shown(site):
    site.charge([1, 2])
    SiteMemory(site.state / "memory.json").remember(Head(99, "0" * 64))
    found = site.look()()
    assert found.budget is None
    assert "entry 99 is anchored but missing" in found.troubles[0].what
    assert "is spent at delta" not in text_of(found)


def test_a_ledger_that_is_gone_although_the_site_remembers_it(site):
    site.charge([1])
    site.ledger.unlink()
    assert "cannot read" in site.look()().troubles[0].what


@pytest.mark.parametrize("running", [True, False])
def test_paused_and_ending(site, running):
    with site.running():
        if running:
            site.note("under_way.json", under_way())
        look = site.look()
        look.brake.pause("a test")
        found = state_of(look())
        assert found.word == "paused"
        assert ("is finished" in found.sentence) == running
        look.brake.release()
        assert look.brake.end("a test")
        assert state_of(look()).word == "stopping"
    assert state_of(look()).word == "not running"


def test_records_that_are_still_read(site):
    with site.running(tasks=None):
        assert state_of(site.look()()).word == "starting"


def test_a_round_that_waits_for_the_others(site):
    site.note("under_way.json", under_way(phase="waiting", until="2026-12-01T10:30:00+00:00"))
    with site.running():
        words = running_words(site.look()().running)
    assert "waits for the others" in words
    assert "until 2026-12-01 10:30 UTC at most" in words


def test_plain_values_are_whole(site):
    site.charge([1, 2])
    site.did(sent_line(1))
    told = json.loads(json.dumps(as_json(site.look()()), allow_nan=False))
    budget = told["budget"]
    assert budget["spent"] + budget["left"] == pytest.approx(8.0)
    assert (budget["charges"], budget["charges_without_result"]) == (2, 0)
    assert told["sent"][0]["size_bytes"] == 221184
    assert told["state"] == "not running"
    assert told["service"]["connected"] is None


def test_what_is_left_is_never_rounded_up(site):
    site.charge([1])
    budget = site.look()().budget
    assert budget is not None
    assert float(left_text(budget)) <= budget.left < float(left_text(budget)) + 1e-3
    assert f"{left_text(budget)} is left" in budget_words(budget)


def test_only_the_owner_of_a_finished_kit_looks(site, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="not of a site"):
        read_site_kit(tmp_path / "operator" / "kits" / "coordinator")
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    with pytest.raises(ConfigError, match="is another user's"):
        read_site_kit(site.kit)
    monkeypatch.undo()
    site.kit.chmod(0o750)
    with pytest.raises(ConfigError, match="can be read by other users"):
        read_site_kit(site.kit)


def test_no_key_of_the_kit_is_read(site, monkeypatch):
    site.charge([1])

    def read(*_):
        pytest.fail("a key was read")

    monkeypatch.setattr(Identity, "load", read)
    (site.kit / "keys" / "signing.pem").unlink()
    (site.kit / "node.key").unlink()
    assert site.look()().budget is not None


def policy(text):
    return parse(SitePolicy, parse_toml(text, "test"), "test")


def test_a_policy_is_said_in_plain_words():
    found = dict(allowed(policy("[budget]\nepsilon = 3.0\n[allow]\nmin_cohort = 4\n")))
    assert found["the most that may ever be spent"].startswith("epsilon 3 at delta 1e-05")
    assert found["what is protected in training"] == "each single record"
    assert found["sites in a sum that may be opened"] == "4 at least"
    assert found["runs without differential privacy"] == "refused"
    assert found["encrypted runs without masks"] == "refused"


def test_every_weakening_of_a_policy_is_said():
    """A rule that a policy loosens changes a line of the page."""
    strict = allowed(policy(""))
    for text in (
        "[budget]\nepsilon = 9.0",
        "[budget]\ndelta = 1e-4",
        "[budget]\ncolluders_epsilon = 50.0",
        *(
            f"[allow]\n{line}"
            for line in (
                'encryption = "optional"',
                'masks = "optional"',
                "non_private = true",
                "min_cohort = 1",
                "colluders = 1",
                "colluding_share = 0.0",
                "lost_share = 0.5",
                'unit = "person"',
                'tasks = ["causal"]',
                f'models = ["{"0" * 64}"]',
                "parts = []",
            )
        ),
        '[model]\npath = "x"\ndevice = "cuda"',
        '[data]\ntrain = "x"\nunit = "patient"',
    ):
        assert allowed(policy(text)) != strict, text


def test_nothing_of_the_source_stands_in_it():
    found = str(allowed(policy('[data]\ntrain = "postgresql://u:secret@h/db"\nquery = "SELECT 1"')))
    assert "secret" not in found
    assert "SELECT" not in found


def test_the_last_round_stands_first(site):
    site.did(*(sent_line(number) for number in range(1, 30)))
    text = text_of(site.look()())
    assert text.index("29 of 10") < text.index("28 of 10")
    assert "And 17 before." in text
    assert ROUND
