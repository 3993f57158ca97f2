from __future__ import annotations

import json
import shutil
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.deployment import Deployment, wait_until
from support.kits import make_federation
from support.ports import free_port
from support.tls import tls_server
from typer.testing import CliRunner

from fedllm.cli import app
from fedllm.federation.site.brake import Brake
from fedllm.identity.keys import Identity
from fedllm.identity.provisioning import renew
from fedllm_client import check, machine
from fedllm_client.check import check_site
from fedllm_client.checking import CheckResult

PRIVATE = "Zebediah Quux has the plague"


class Place:
    """A site's kit and policy, and the kit of its coordinator."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.federation = folder / "fed"
        make_federation(self.federation, coordinator={"hosts": ["127.0.0.1"], "port": self.port})
        self.kit = Path(shutil.move(self.federation / "kits" / "anne", folder / "anne"))
        self.coordinator = self.federation / "kits" / "coordinator"
        self.records = folder / "records.jsonl"
        self.policy = folder / "site.toml"
        self.write_records([{"text": f"{PRIVATE} {i}", "label": i % 3} for i in range(120)])
        self.write_policy()

    def write_records(self, rows: list[dict[str, object]]) -> None:
        self.records.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write_policy(self, extra: str = "") -> None:
        self.policy.write_text(f'[data]\ntrain = "records.jsonl"\n{extra}')

    def check(self, model: str | None = None) -> dict[str, CheckResult]:
        found = check_site(self.kit, self.policy, model)
        assert PRIVATE not in json.dumps([vars(result) for result in found])
        return {result.check: result for result in found}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_site_that_is_ready(place, tiny_checkpoint, monkeypatch):
    usage = shutil.disk_usage(place.kit)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage._replace(free=1 << 40))
    monkeypatch.setattr(machine, "_available_memory", lambda: 1 << 40)
    with tls_server(place.coordinator, place.port):
        found = place.check(str(tiny_checkpoint("bert")))
    assert {name: result.state for name, result in found.items()} == dict.fromkeys(found, "ok")
    assert len(found) == 13
    assert found["data"].found == "120 records for classification, 3 labels"
    assert "TLSv1.3" in found["network"].found
    assert "private step on made-up text" in found["training"].found


def test_a_site_that_is_paused_is_told_so(place):
    Brake(place.kit / "state").pause("a test")
    found = place.check()["pause"]
    assert found.state == "warning"
    assert found.found.startswith("this site is paused since ")
    assert f"fedllm client resume --kit {place.kit}" in found.remedy


def test_a_causal_model_is_tried_too(place, tiny_checkpoint):
    assert place.check(str(tiny_checkpoint("llama")))["training"].state == "ok"


def test_one_failure_hides_no_other(place):
    place.write_policy("[alow]\n")
    found = place.check()
    assert found["kit"].state == "ok"
    assert (found["network"].state, found["network"].exit_code) == ("failed", 1)
    assert f"127.0.0.1 port {place.port} cannot be reached" in found["network"].found
    assert "outbound TCP" in found["network"].remedy
    assert found["clock"].state == found["data"].state == found["training"].state == "skipped"
    assert (found["policy"].state, found["policy"].exit_code) == ("failed", 2)
    assert "did you mean 'allow'" in found["policy"].remedy
    assert found["disk"].state == "ok"


def test_a_kit_that_others_can_read(place):
    (place.kit / "keys" / "secret.bin").chmod(0o644)
    found = place.check()
    assert found["kit"].state == "failed"
    assert "chmod" in found["kit"].remedy
    assert found["network"].state == "skipped"
    assert found["data"].state == "ok"


def test_somebody_else_answers(place, tmp_path):
    make_federation(tmp_path / "evil")
    with tls_server(tmp_path / "evil" / "kits" / "coordinator", place.port):
        result = place.check()["network"]
    assert (result.state, result.exit_code) == ("failed", 4)
    assert "is not the federation's coordinator" in result.found
    assert "inspect" in result.remedy


def test_an_expired_certificate(place, tmp_path):
    past = datetime.now(UTC) - timedelta(days=500)
    renew(place.federation, now=past)
    server = shutil.copytree(place.coordinator, tmp_path / "server")
    shutil.copy(place.federation / "server.pem", server / "server.pem")
    with tls_server(server, place.port):
        result = place.check()["network"]
    assert result.exit_code == 4
    assert "has expired" in result.found


def test_a_port_that_speaks_no_tls(place):
    with socket.create_server(("127.0.0.1", place.port)) as listener:
        import threading

        def answer() -> None:
            # The first connection only tries whether the port is open.
            listener.accept()[0].close()
            stream, _ = listener.accept()
            stream.recv(100)
            stream.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")
            stream.close()

        thread = threading.Thread(target=answer)
        thread.start()
        result = place.check()["network"]
        thread.join()
    assert result.state == "failed"
    assert "not in TLS 1.3" in result.found


@pytest.mark.parametrize(
    ("minutes", "state", "words"),
    [(-2, "failed", "ahead of"), (10, "failed", "behind"), (0.5, "ok", "seconds from")],
)
def test_clocks_that_differ(place, minutes, state, words):
    theirs = datetime.now(UTC) + timedelta(minutes=minutes)
    with tls_server(place.coordinator, place.port, theirs):
        result = place.check()["clock"]
    assert result.state == state
    assert words in result.found


def test_a_coordinator_that_does_not_know_the_site(place):
    with tls_server(place.coordinator, place.port, status="401 Unauthorized"):
        result = place.check()["registration"]
    assert (result.state, result.exit_code) == ("failed", 3)
    assert "ask the operator" in result.remedy


@pytest.mark.slow
def test_a_real_coordinator(tmp_path, tiny_checkpoint):
    """It knows the site, until the operator revokes it."""
    from fedllm.identity.provisioning import revoke

    deployment = Deployment(tmp_path, tiny_checkpoint("bert"))
    try:
        deployment.start("coordinator")
        wait_until(lambda: "listening" in deployment.log("coordinator"))

        def check() -> dict[str, str]:
            kit, policy = deployment.kit("site-00"), tmp_path / "site-00.toml"
            return {result.check: result.state for result in check_site(kit, policy)}

        states = check()
        # Thirty records of the helper are few.
        assert states == dict.fromkeys(states, "ok") | {"data": "warning"}
        stale = shutil.copytree(deployment.kit("site-00"), tmp_path / "stale")
        revoke(tmp_path / "operator", "site-00")
        wait_until(lambda: "version 2 is in force" in deployment.log("coordinator"))
        found = check_site(stale, tmp_path / "site-00.toml")
        states = {result.check: result.state for result in found}
        assert (states["network"], states["registration"]) == ("ok", "failed")
    finally:
        deployment.close()


def test_a_coordinator_without_a_clock(place):
    with tls_server(place.coordinator, place.port, None):
        assert place.check()["clock"].state == "warning"


def test_a_proxy_that_the_environment_names(place, monkeypatch):
    """It is asked to tunnel, and the coordinator's certificate still counts."""
    import threading

    asked = []
    with (
        tls_server(place.coordinator, place.port),
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):

        def tunnel() -> None:
            # The first connection only tries whether the proxy is there.
            listener.accept()[0].close()
            near, _ = listener.accept()
            asked.append(near.recv(4096).split(b"\r\n")[0])
            far = socket.create_connection(("127.0.0.1", place.port))
            near.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            back = threading.Thread(target=pump, args=(far, near))
            back.start()
            pump(near, far)
            back.join()

        def pump(source: socket.socket, target: socket.socket) -> None:
            while content := source.recv(4096):
                target.sendall(content)
            target.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=tunnel)
        thread.start()
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{listener.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.setattr("urllib.request.proxy_bypass", lambda host: False)
        result = place.check()["network"]
        thread.join(timeout=120)
    assert result.state == "ok"
    assert asked[0].startswith(f"CONNECT 127.0.0.1:{place.port} ".encode())


def test_dates_that_come_near(place):
    soon = datetime.now(UTC) - timedelta(days=380)
    done = renew(place.federation, now=soon)
    assert done.roster is not None
    from fedllm.identity.kits import update_roster

    update_roster(place.kit, (place.federation / "roster.json").read_text())
    with tls_server(place.coordinator, place.port):
        found = place.check()
    for name in ("roster", "certificate"):
        assert found[name].state == "warning"
        assert "renew" in found[name].remedy


@pytest.mark.parametrize(
    ("rows", "extra", "words"),
    [
        ([{"text": PRIVATE, "label": None}], "", "row 1 (line 1): field 'label' is null"),
        ([{"text": 3, "label": 1}], "", "field 'text' is of type int"),
        ([{"note": PRIVATE}], "", "no column 'text'"),
        ([{"text": PRIVATE, "label": 1}], 'unit = "patient"\n', "no column 'patient'"),
        ([{"text": PRIVATE, "label": 1}] * 120, '[allow]\nunit = "person"\n', "names no column"),
        ([], "", "holds no rows"),
    ],
)
def test_records_that_do_not_fit(place, rows, extra, words):
    place.write_records(rows)
    place.write_policy(extra)
    result = place.check()["data"]
    assert (result.state, result.exit_code) == ("failed", 2)
    assert words in result.found
    assert result.remedy


def labelled(**counts: int) -> list[dict[str, object]]:
    rows = [label for label, count in counts.items() for _ in range(count)]
    return [{"text": f"{PRIVATE} {i}", "label": label} for i, label in enumerate(rows)]


def test_labels_that_may_be_slips_are_a_warning(place):
    place.write_records(labelled(lost_card=70, refund=50, **{"lost_card ": 2, "refudn": 1}))
    result = place.check()["data"]
    assert result.state == "warning"
    assert "'lost_card' (70) and 'lost_card ' (2), 'refund' (50) and 'refudn' (1)" in result.found
    assert "one record only: 'refudn'" in result.found
    assert "write each label in one way" in result.remedy


def test_groups_are_counted_for_the_sites_own_people(place):
    of = ["english"] * 80 + ["german"] * 30 + [None] * 10
    rows = [{"text": f"{PRIVATE} {i}", "label": i % 3, "of": name} for i, name in enumerate(of)]
    place.write_records(rows)
    place.write_policy('group = "of"\n')
    found = place.check()["data"].found
    assert found.endswith(", 3 labels, groups 'english' (80), 'german' (30), 10 of none")
    place.write_records([{**row, "of": f"{PRIVATE} {i}"} for i, row in enumerate(rows)])
    assert place.check()["data"].found.endswith(", 3 labels, 120 groups")


def test_what_may_be_no_labels_is_never_shown(place):
    rows = [{"text": "x", "label": f"{PRIVATE} {i}"} for i in range(120)]
    place.write_records(rows)
    result = place.check()["data"]
    assert (result.state, result.exit_code) == ("warning", 0)
    assert "120 labels for 120 records" in result.found
    assert "data.label" in result.remedy


def test_the_whole_fingerprint_of_the_model_is_printed(place, tiny_checkpoint):
    from fedllm.models.contents import fingerprints

    model = tiny_checkpoint("bert")
    assert fingerprints(model).current in place.check(str(model))["training"].found


def test_a_policy_in_error_is_not_said_to_name_no_model(place):
    place.write_policy('[model]\npath = "base"\n[alow]\n')
    found = place.check()["training"]
    assert (found.state, found.found) == (
        "skipped",
        "cannot be tried before the policy is in order",
    )
    place.write_policy()
    found = place.check()["training"]
    assert (found.state, found.exit_code) == ("failed", 2)
    assert "the policy names no base model" in found.found


@pytest.mark.parametrize(
    ("ceiling", "words"),
    [
        ("", "is not limited (budget.colluders_epsilon is not set)"),
        ("[budget]\ncolluders_epsilon = 40\n", "is at most epsilon 40"),
    ],
)
def test_what_everyone_else_together_could_learn_is_told(place, ceiling, words):
    place.write_policy(ceiling)
    assert place.check()["policy"].found.endswith(words)


def test_a_cohort_of_one_is_a_warning(place):
    place.write_policy("[allow]\nmin_cohort = 1\n")
    result = place.check()["policy"]
    assert result.state == "warning"
    assert "that site's own update" in result.found


def test_what_to_start_is_said_whole(place, tmp_path, monkeypatch):
    from fedllm_client import check as module

    ready = [CheckResult("kit", "ok", "there")]
    monkeypatch.setattr(module, "check_site", lambda *_: ready)
    kit = tmp_path / "our kit"
    arguments = ["client", "check", "--kit", str(kit), "--policy", str(place.policy)]
    said = CliRunner().invoke(app, arguments).output.splitlines()[-1]
    assert said == f"Ready: fedllm client start --kit '{kit}' --policy {place.policy}"


def test_few_records_are_a_warning(place):
    place.write_records([{"text": PRIVATE, "label": i} for i in range(3)])
    assert place.check()["data"].state == "warning"


def test_a_delta_that_promises_nothing_is_a_warning(place):
    place.write_policy("[budget]\ndelta = 0.01\n")
    result = place.check()["data"]
    assert result.state == "warning"
    assert "budget.delta 0.01 is above 1 / 120" in result.found


def test_the_first_task_that_fits_is_read(place):
    place.write_records([{"q": PRIVATE, "a": "yes"}] * 150)
    place.write_policy('prompt = "q"\nresponse = "a"\n')
    assert place.check()["data"].found == "150 records for instruction"


def test_every_task_whose_columns_are_there_is_read_as_by_a_site_that_starts(place):
    row = {"text": f"{PRIVATE} rests", "spans": [{"start": 4, "end": 11, "label": "NAME"}]}
    place.write_records([row] * 150)
    found = place.check()["data"]
    assert found.found == "150 records for causal; for token_classification, 150 spans of 1 label"
    place.write_records([row] * 149 + [{**row, "spans": [{**row["spans"][0], "end": 99}]}])
    found = place.check()["data"]
    assert found.state == "failed"
    assert "row 150 (line 150): field 'spans': span 1 is not within the text" in found.found
    assert '"label": "NAME"' in found.remedy
    place.write_policy('[allow]\ntasks = ["causal"]\n')
    assert place.check()["data"].found == "150 records for causal"


def test_the_ledger_is_verified(place):
    from fedllm.privacy.ledger.ledger import Ledger

    path = place.kit / "state" / "ledger.sqlite"
    Ledger.open(path, "anne", Identity.load("anne", place.kit / "keys"))
    assert "1 entries hold; epsilon 0 of 8" in place.check()["ledger"].found
    content = bytearray(path.read_bytes())
    place_of_key = content.rindex(b"public_key")
    content[place_of_key + 14] ^= 1
    path.write_bytes(content)
    result = place.check()["ledger"]
    assert (result.state, result.exit_code) == ("failed", 4)


def test_what_is_left_is_the_declared_accounts(place):
    from fedllm.privacy.accounting.events import Gaussian
    from fedllm.privacy.ledger.budget import Ceiling, Charge
    from fedllm.privacy.ledger.ledger import Ledger

    path = place.kit / "state" / "ledger.sqlite"
    ledger = Ledger.open(path, "anne", Identity.load("anne", place.kit / "keys"))
    for account in ("oncology", "surgery"):
        charge = Charge("run", 1, account, (Gaussian(0.8),), unit="person")
        ledger.reserve(charge, Ceiling(8.0, 1e-5))
    place.write_records([{"text": PRIVATE, "label": 1, "who": i} for i in range(120)])
    place.write_policy('unit = "who"\n')
    everything = place.check()["ledger"]
    assert (everything.state, everything.exit_code) == ("failed", 3)
    assert "will refuse every private run" in everything.found
    place.write_policy('unit = "who"\n[budget]\naccount = "oncology"\n')
    assert place.check()["ledger"].state == "ok"
    place.write_policy("")
    result = place.check()["ledger"]
    assert (result.state, result.exit_code) == ("failed", 3)
    assert "they protect each person" in result.found


@pytest.mark.parametrize(
    ("ceiling", "state", "code", "words"),
    [(1e6, "ok", 0, ""), (1.05, "warning", 0, "little is left"), (1.0, "failed", 3, "stop here")],
)
def test_a_site_that_has_spent_all_is_not_ready(place, ceiling, state, code, words):
    from fedllm.privacy.accounting.accountants import epsilon
    from fedllm.privacy.accounting.events import Gaussian
    from fedllm.privacy.ledger.budget import Ceiling, Charge
    from fedllm.privacy.ledger.ledger import Ledger

    path, event = place.kit / "state" / "ledger.sqlite", Gaussian(0.8)
    ledger = Ledger.open(path, "anne", Identity.load("anne", place.kit / "keys"))
    ledger.reserve(Charge("run", 1, "", (event,)), Ceiling(1e6, 1e-5))
    spent = epsilon([event], 1e-5).value
    place.write_policy(f"[budget]\nepsilon = {spent * ceiling!r}\n")
    result = place.check()["ledger"]
    assert (result.state, result.exit_code) == (state, code)
    assert words in result.remedy


def test_a_site_that_enrolled_anew_owes_its_earlier_spending(place, tmp_path):
    """Check and start refuse until it was taken over."""
    from fedllm.identity.enrolment import accept, enroll, read_answer
    from fedllm.identity.provisioning import revoke, sign

    revoke(place.federation, "anne")
    request = enroll(tmp_path / "again", "site", "anne")
    _, answer = sign(place.federation, request)
    accept(tmp_path / "again", read_answer(answer.read_text()))
    place.kit = tmp_path / "again"
    kit = ["--kit", str(place.kit)]
    result = place.check()["ledger"]
    assert (result.state, result.exit_code) == ("failed", 3)
    assert "carry-over" in result.remedy
    runner = CliRunner()
    started = runner.invoke(app, ["client", "start", *kit, "--policy", str(place.policy)])
    assert "had other keys before" in str(started.exception)
    for wrong in ([], ["--epsilon", "3"], ["old", "--epsilon", "3"]):
        assert "not clear" in str(
            runner.invoke(app, ["ledger", "carry-over", *wrong, *kit]).exception
        )
    stated = ["--epsilon", "3", "--delta", "1e-6", "--unit", "record"]
    done = runner.invoke(app, ["ledger", "carry-over", *stated, *kit])
    assert done.exit_code == 0, done.exception
    assert "from now on" in done.output
    assert place.check()["ledger"].state == "ok"


def test_the_ledger_of_another_site_is_refused(place):
    from fedllm.privacy.ledger.ledger import Ledger

    path = place.kit / "state" / "ledger.sqlite"
    Ledger.open(path, "eve", Identity.load("anne", place.kit / "keys"))
    result = place.check()["ledger"]
    assert (result.state, result.exit_code) == ("failed", 3)


def test_a_model_that_the_policy_does_not_allow(place, tiny_checkpoint):
    place.write_policy(f'[allow]\nmodels = ["{"0" * 64}"]\n')
    result = place.check(str(tiny_checkpoint("bert")))["training"]
    assert (result.state, result.exit_code) == ("failed", 3)
    assert "allow.models" in result.found


def test_a_policy_with_an_earlier_fingerprint_says_which_to_list(place, tiny_checkpoint):
    from fedllm.models.contents import fingerprints

    prints = fingerprints(tiny_checkpoint("bert"))
    place.write_policy(f'[allow]\nmodels = ["{prints.earlier}"]\n')
    result = place.check(str(tiny_checkpoint("bert")))["training"]
    assert (result.state, result.exit_code) == ("failed", 3)
    assert "earlier kind of fingerprint" in result.found
    assert prints.current in result.remedy


def test_a_model_that_is_not_there(place):
    result = place.check(str(place.kit / "model"))["training"]
    assert result.state == "failed"


def test_a_full_disk_and_little_memory(place, monkeypatch):
    usage = shutil.disk_usage(place.kit)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    monkeypatch.setattr(machine, "_available_memory", lambda: 1 << 20)
    found = place.check()
    assert found["disk"].state == "failed"
    assert found["memory"].state == "warning"


def test_an_error_of_a_library_shows_its_kind_alone(place, monkeypatch):
    def fails(*_: object) -> None:
        raise ValueError(PRIVATE)

    monkeypatch.setattr(check, "_readable", fails)
    result = place.check()["data"]
    assert result.found == "broke off (ValueError)"
    assert result.state == "failed"


def test_a_policy_that_others_can_change(place):
    place.policy.chmod(0o666)
    result = place.check()["policy"]
    assert result.state == "warning"
    assert "chmod" in result.remedy


@pytest.mark.parametrize(
    ("setting", "refuses"),
    [("min_cohort = 3", True), ("min_cohort = 2", False), ("colluders = 1", True)],
)
def test_a_site_that_will_refuse_every_round_is_not_ready(place, setting, refuses):
    place.policy.chmod(0o666)
    place.write_policy(f"[allow]\n{setting}\n")
    result = place.check()["policy"]
    assert (result.state, result.exit_code) == (("failed", 3) if refuses else ("warning", 0))
    assert ("will refuse every round" in result.found) == refuses


@pytest.mark.parametrize(
    ("state", "code", "words"),
    [
        ("ok", 0, "Ready: fedllm client start"),
        ("warning", 0, "Ready, but see to policy: fedllm client start"),
        ("skipped", 0, "Ready, but see to policy: fedllm client start"),
        ("failed", 3, "Not ready: policy."),
    ],
)
def test_the_verdict_follows_what_was_found(place, monkeypatch, state, code, words):
    found = [CheckResult("kit", "ok", "there"), CheckResult("policy", state, "x", "y", code)]
    monkeypatch.setattr(check, "check_site", lambda *_: found)
    arguments = ["client", "check", "--kit", str(place.kit), "--policy", str(place.policy)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == code
    assert done.output.splitlines()[-1].startswith(words)
