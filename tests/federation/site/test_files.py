"""When what a site must not lose is on disk: at once, but in a simulation of one run."""

from __future__ import annotations

import ast
import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from support.federation import small_config

from fedllm.config import BudgetSection, RunConfig, SitePolicy
from fedllm.errors import RefusedError, StorageError
from fedllm.federation.protocol.round_statement import RoundStatement
from fedllm.federation.site.charging import SiteAccount
from fedllm.federation.site.files import SiteFiles
from fedllm.federation.site.memory import SiteMemory
from fedllm.federation.site.telling import SiteTelling
from fedllm.files import sync_files
from fedllm.identity.keys import Identity
from fedllm.privacy.ledger.audit import verify_ledger
from fedllm.privacy.ledger.entries import Head
from fedllm.privacy.ledger.ledger import Ledger
from fedllm.privacy.ledger.store import Store, Sync
from fedllm_client.simulated import SimulatedSites

ROOT = Path(__file__).resolve().parents[3]
TEXTS = ("members", "plan", "key", "reveal_key", "config", "labels", "bounds", "model", "adapter")
STATEMENT = RoundStatement(
    run="run-1", round=1, attempt=1, rounds=2, cohort=(), min_sites=2, **dict.fromkeys(TEXTS, "")
)


def made(folder: Path, sync: Sync) -> SiteFiles:
    return SiteFiles(*(folder / f"anne.{end}" for end in ("sqlite", "json", "log")), sync)


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


@pytest.mark.parametrize(("sync", "setting"), [("entry", 3), ("commit", 0), ("together", 0)])
def test_sqlite_syncs_as_the_files_say(tmp_path, sync, setting):
    files = made(tmp_path, sync)
    Ledger.open(files.ledger, "anne", Identity.generate("anne"), None, files.sync)
    with Store(files.ledger, files.sync).write() as view:
        assert view._connection.execute("PRAGMA synchronous").fetchone() == (setting,)


@pytest.mark.parametrize("sync", ["entry", "commit", "together"])
def test_what_is_not_written_at_once_is_on_disk_before_an_update_leaves(tmp_path, synced, sync):
    """Or, where whoever opened the ledgers syncs them, when it does; see below."""
    files, identity, at_once = made(tmp_path, sync), Identity.generate("anne"), sync == "entry"
    account = SiteAccount(files, identity, SitePolicy(budget=BudgetSection(epsilon=2.0)))
    telling = SiteTelling(files.log, None, lambda asked: None, files.at_once)
    synced.clear()
    paid = account.reserve(STATEMENT, small_config(Path("model"), privacy={"epsilon": 2.0}), 40, 9)
    telling.details(RefusedError("why"))
    # The memory, under another name at first, and its folder; the log and its folder.
    assert len(synced) == (4 if at_once else 0)
    synced.clear()
    account.commit(paid)
    # Its folder too, or a journal that was removed would come back and undo the entries.
    assert synced == (["anne.sqlite", tmp_path.name] if sync == "commit" else [])
    synced.clear()
    account.settle(STATEMENT, b"words", 2)
    assert len(synced) == (2 if at_once else 0)
    assert verify_ledger(files.ledger, identity.public_bytes()).head.sequence == 4


def test_a_memory_is_never_half_there(tmp_path, monkeypatch):
    """Where it is made, or grows on a full disk: a site that cannot read it refuses for good."""
    path, whole = tmp_path / "anne.json", []
    write = Path.replace

    def noted(self, target):
        whole.append((self.read_bytes(), target.read_bytes() if target.exists() else None))
        return write(self, target)

    monkeypatch.setattr(Path, "replace", noted)
    memory = SiteMemory(path, at_once=False)
    memory.remember(Head(1, "1" * 64))
    first = path.read_bytes()
    memory.remember(Head(2, "2" * 64))
    # The second stands in the place of the first, byte for byte.
    assert whole == [(first, None)]
    assert memory.head() == Head(2, "2" * 64)
    short = path.read_bytes().replace(b" ", b"")
    path.write_bytes(short)
    memory.remember(Head(3, "3" * 64))
    assert whole[1:] == [(path.read_bytes(), short)]


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
        made(tmp_path / "new" / "site", "entry"), Identity.generate("anne"), SitePolicy()
    )
    assert account.head().sequence == 1
    assert (tmp_path / "new" / "site" / "anne.sqlite").exists()


def test_no_configuration_leads_to_a_deployed_site_that_writes_later(tmp_path):
    assert SiteFiles.of_kit(tmp_path).sync == "entry"
    for kind in (SitePolicy, RunConfig):
        assert '"sync"' not in json.dumps(kind.model_json_schema())
    asking = {
        path.relative_to(ROOT).as_posix()
        for folder in ("fedllm", "clients", "server")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "SiteFiles"
        if len(node.args) > 3 or any(k.arg == "sync" for k in node.keywords)
    }
    assert asking == {"clients/fedllm_client/simulated.py"}


def test_ledgers_of_a_folder_of_their_own_keep_every_guarantee_in_a_simulation(tmp_path):
    run, kept = tmp_path / "run", tmp_path / "kept"
    for together, of_the_run in ((False, "commit"), (True, "together")):
        assert SimulatedSites(run, kept, 1, together).files("anne").sync == "entry"
        assert SimulatedSites(run, run, 1, together).files("anne").sync == of_the_run


@pytest.mark.parametrize(("sites", "one_by_one"), [(3, True), (40, False)])
def test_ledgers_of_many_sites_are_synced_together(tmp_path, synced, sites, one_by_one):
    source = SimulatedSites(tmp_path, tmp_path, 1, together=True)
    source.sync()
    for number in range(sites):
        name = f"site-{number}"
        files = source.files(name)
        Ledger.open(files.ledger, name, Identity.generate(name), None, files.sync)
    synced.clear()
    source.sync()
    names = [*sorted(f"site-{number}.sqlite" for number in range(sites)), "ledgers"]
    assert synced == (names if one_by_one else [])


def test_a_disk_that_cannot_sync_is_told(tmp_path, monkeypatch):
    def broken(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    paths = [tmp_path / f"{number}.sqlite" for number in range(40)]
    for path in paths:
        path.touch()
    sync_files(paths)
    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(StorageError, match="Input/output error"):
        sync_files(paths[:3])
    shutil.rmtree(tmp_path)
    with pytest.raises(StorageError, match="No such file"):
        sync_files(paths)


@pytest.mark.parametrize("before", ["", "short", "x" * 500])
def test_what_a_site_remembers_is_whole_whatever_stood_there(tmp_path, before):
    memory, head = SiteMemory(tmp_path / "anne.json", at_once=False), Head(7, "ab" * 32)
    (tmp_path / "anne.json").write_text(before)
    if not before:
        (tmp_path / "anne.json").unlink()
    memory.begin_anew(head)
    assert memory.head() == head
    memory.remember(replace(head, sequence=10**12))
    assert memory.head() == replace(head, sequence=10**12)
    assert len((tmp_path / "anne.json").read_bytes().splitlines()) == 1
