"""Whatever bit of a kept key, certificate or list of parties is wrong, the answer is in words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from golden.kept import PASSPHRASE, V1, V2, private_copy, read

from fedllm.errors import FedllmError
from fedllm.identity import certificates
from fedllm.identity.enrolment import read_request
from fedllm.identity.keys import Identity
from fedllm.identity.kits import node_public_key
from fedllm.identity.operator_keys import load_root
from fedllm.identity.provisioning import inspect
from fedllm.identity.roster import is_node_key
from fedllm.privacy.ledger.audit import read_state
from fedllm.runs.checkpoints import load_checkpoint
from fedllm.runs.job import read_job
from fedllm.runs.metrics import read_reports
from fedllm.runs.summary import read_summary
from fedllm_server.jobs import error_of

# The kept serial number may turn negative, of which `cryptography` warns.
pytestmark = pytest.mark.filterwarnings("ignore:Parsed a serial number")
FEDERATION = V1 / "federation"
COORDINATOR = FEDERATION / "kits" / "coordinator"


def never_fails_otherwise(content: bytes, use: Callable[[bytes], object], every: int = 1) -> None:
    """Use copies with one wrong bit each; nothing but an error of ours may come."""
    refused = 0
    for place in range(0, 8 * len(content), every):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        try:
            use(bytes(changed))
        except FedllmError:
            refused += 1
    assert refused


def at(path: Path, use: Callable[[Path], object]) -> Callable[[bytes], object]:
    def written(content: bytes) -> object:
        path.write_bytes(content)
        return use(path)

    return written


def test_a_signing_key(tmp_path):
    keys = private_copy(V1 / "keys" / "anne", tmp_path / "keys")
    path = keys / "signing.pem"
    load = at(path, lambda _: Identity.load("anne", keys))
    never_fails_otherwise(path.read_bytes(), load)


def test_a_node_key(tmp_path):
    content = (FEDERATION / "kits" / "anne" / "node.key").read_bytes()
    begin, end = content[:130], content[160:]
    # Between them stands how a point of the curve is written.
    use = at(tmp_path / "node.key", node_public_key)
    never_fails_otherwise(content[130:160], lambda part: use(begin + part + end))
    never_fails_otherwise(content, use, every=29)


def test_a_nodes_public_key():
    pem = read(FEDERATION / "roster.json")["roster"]["node_keys"]["anne"].encode()
    for place in range(8 * len(pem)):
        changed = bytearray(pem)
        changed[place // 8] ^= 1 << place % 8
        assert not is_node_key(bytes(changed))


def test_a_root_key(tmp_path):
    folder = private_copy(FEDERATION, tmp_path / "federation")
    path = folder / "root" / "signing.pem"
    use = at(path, lambda _: load_root(folder, PASSPHRASE))
    never_fails_otherwise(path.read_bytes(), use, every=13)


def test_a_ca():
    def use(content: bytes) -> None:
        certificates.check_authority(certificates.read_certificates(content, "x")[0], "x")

    never_fails_otherwise((FEDERATION / "ca" / "ca-1.pem").read_bytes(), use)


def test_a_server_certificate():
    key = certificates.read_private_key(COORDINATOR / "server.key")
    authorities = certificates.read_certificates((COORDINATOR / "ca.pem").read_bytes(), "ca")

    def use(content: bytes) -> None:
        found = certificates.read_certificates(content, "x")[0]
        certificates.check_period(found, "x")
        certificates.check_server_certificate(found, key, authorities, "127.0.0.1", "x")

    never_fails_otherwise((COORDINATOR / "server.pem").read_bytes(), use)


def test_the_coordinators_request():
    kept = json.loads((COORDINATOR / "request.json").read_text())

    def use(content: bytes) -> None:
        text = content.decode("latin-1")
        read_request(json.dumps({**kept, "request": {**kept["request"], "server_request": text}}))

    never_fails_otherwise(kept["request"]["server_request"].encode(), use, every=3)


def test_the_list_of_parties(tmp_path):
    folder = private_copy(FEDERATION, tmp_path / "federation")
    path = folder / "federation.json"
    never_fails_otherwise(path.read_bytes(), at(path, lambda _: inspect(folder)), every=71)


def test_a_ledger(tmp_path):
    content = (V1 / "ledger" / "first.sqlite").read_bytes()
    path = tmp_path / "ledger.sqlite"
    # Where SQLite keeps its schema, and where it keeps what kind of value stands in a column.
    for start, end, every in ((2600, 2900, 7), (13280, 13290, 1)):
        part = content[start:end]

        def use(changed: bytes, start: int = start, end: int = end) -> None:
            path.write_bytes(content[:start] + changed + content[end:])
            read_state(path)

        never_fails_otherwise(part, use, every)


def test_the_runs_of_a_coordinator(tmp_path):
    path = tmp_path / "job.json"
    kept = (V1 / "job" / "failed" / "job.json").read_bytes()
    never_fails_otherwise(kept, at(path, lambda _: error_of(read_job(tmp_path))), every=5)


def test_the_figures_of_a_run(tmp_path):
    kept = (V2 / "progress" / "metrics.jsonl").read_bytes()
    never_fails_otherwise(kept, at(tmp_path / "metrics.jsonl", read_reports), every=13)


def test_what_a_run_comes_to(tmp_path):
    kept = (V2 / "simulation" / "summary.json").read_bytes()
    use = at(tmp_path / "summary.json", lambda _: read_summary(tmp_path).describe(tmp_path))
    never_fails_otherwise(kept, use, every=41)


def test_the_state_of_a_run(tmp_path):
    folder = tmp_path / "round-00003"
    shutil.copytree(V2 / "simulation" / "checkpoints" / "round-00003", folder)
    path = folder / "state.json"
    never_fails_otherwise(
        path.read_bytes(), at(path, lambda _: load_checkpoint(tmp_path)), every=23
    )
