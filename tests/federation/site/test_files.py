"""When what a site must not lose is on disk: at once, but in a simulation of one run."""

from __future__ import annotations

import ast
import json
import os
from pathlib import Path

import pytest
from support.federation import small_config

from fedllm.config import BudgetSection, RunConfig, SitePolicy
from fedllm.errors import RefusedError
from fedllm.federation.protocol.round_statement import RoundStatement
from fedllm.federation.site.charging import SiteAccount
from fedllm.federation.site.files import SiteFiles
from fedllm.federation.site.memory import SiteMemory
from fedllm.federation.site.telling import SiteTelling
from fedllm.identity.keys import Identity
from fedllm.privacy.ledger.audit import verify_ledger
from fedllm.privacy.ledger.ledger import Ledger
from fedllm.privacy.ledger.store import Store
from fedllm_client.simulated import SimulatedSites

ROOT = Path(__file__).resolve().parents[3]
TEXTS = ("members", "plan", "key", "reveal_key", "config", "labels", "bounds", "model", "adapter")
STATEMENT = RoundStatement(
    run="run-1", round=1, attempt=1, rounds=2, cohort=(), min_sites=2, **dict.fromkeys(TEXTS, "")
)


def made(folder: Path, at_once: bool) -> SiteFiles:
    return SiteFiles(*(folder / f"anne.{end}" for end in ("sqlite", "json", "log")), at_once)


@pytest.fixture
def synced(monkeypatch):
    """Names of what Python forced to disk; SQLite's own syncs are told by its setting."""
    found: list[str] = []
    sync = os.fsync

    def noted(descriptor: int) -> None:
        found.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    return found


@pytest.mark.parametrize(("at_once", "setting"), [(True, (3,)), (False, (0,))])
def test_sqlite_syncs_as_the_files_say(tmp_path, at_once, setting):
    files = made(tmp_path, at_once)
    Ledger.open(files.ledger, "anne", Identity.generate("anne"), None, at_once)
    with Store(files.ledger, at_once).write() as view:
        assert view._connection.execute("PRAGMA synchronous").fetchone() == setting


@pytest.mark.parametrize("at_once", [True, False])
def test_what_is_not_written_at_once_is_on_disk_before_an_update_leaves(tmp_path, synced, at_once):
    files, identity = made(tmp_path, at_once), Identity.generate("anne")
    account = SiteAccount(files, identity, SitePolicy(budget=BudgetSection(epsilon=2.0)))
    telling = SiteTelling(files.log, None, lambda asked: None, at_once)
    synced.clear()
    paid = account.reserve(STATEMENT, small_config(Path("model"), privacy={"epsilon": 2.0}), 40, 9)
    telling.details(RefusedError("why"))
    # The memory, under another name at first, and its folder; the log and its folder.
    assert len(synced) == (4 if at_once else 0)
    synced.clear()
    account.commit(paid)
    # Its folder too, or a journal that was removed would come back and undo the entries.
    assert synced == ([] if at_once else ["anne.sqlite", tmp_path.name])
    synced.clear()
    account.settle(STATEMENT, b"words", 2)
    assert len(synced) == (2 if at_once else 0)
    assert verify_ledger(files.ledger, identity.public_bytes()).head.sequence == 4


def test_who_says_nothing_else_writes_at_once(tmp_path, synced):
    """A new ledger's folder too, or a crash would leave a site without what it was charged for."""
    identity = Identity.generate("anne")
    ledger = Ledger.open(tmp_path / "anne.sqlite", "anne", identity)
    assert synced == [tmp_path.name]
    with Store(tmp_path / "anne.sqlite").write() as view:
        assert view._connection.execute("PRAGMA synchronous").fetchone() == (3,)
    synced.clear()
    SiteMemory(tmp_path / "anne.json").remember(ledger.head())
    assert len(synced) == 2
    synced.clear()
    SiteTelling(tmp_path / "anne.log", None, lambda asked: None).details(RefusedError("why"))
    assert synced == ["anne.log", tmp_path.name]
    synced.clear()
    SiteTelling(tmp_path / "anne.log", None, lambda asked: None).details(RefusedError("why"))
    assert synced == ["anne.log"]


def test_folders_of_a_new_site_are_made(tmp_path):
    account = SiteAccount(
        made(tmp_path / "new" / "site", True), Identity.generate("anne"), SitePolicy()
    )
    assert account.head().sequence == 1
    assert (tmp_path / "new" / "site" / "anne.sqlite").exists()


def test_no_configuration_leads_to_a_deployed_site_that_writes_later(tmp_path):
    assert SiteFiles.of_kit(tmp_path).at_once
    for kind in (SitePolicy, RunConfig):
        assert "at_once" not in json.dumps(kind.model_json_schema())
    asking = {
        path.relative_to(ROOT).as_posix()
        for folder in ("fedllm", "clients", "server")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "SiteFiles"
        if len(node.args) > 3 or any(k.arg == "at_once" for k in node.keywords)
    }
    assert asking == {"clients/fedllm_client/simulated.py"}


def test_ledgers_of_a_folder_of_their_own_keep_every_guarantee_in_a_simulation(tmp_path):
    run, kept = tmp_path / "run", tmp_path / "kept"
    assert SimulatedSites(run, kept, 1).files("anne").at_once
    assert not SimulatedSites(run, run, 1).files("anne").at_once
