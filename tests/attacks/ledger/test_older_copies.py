"""A ledger cut off, restored from a copy or begun anew; only a head kept elsewhere tells."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
from support.ledger import CEILING, SIGNER, attack, content, filled, is_found

from fedllm.privacy.accounting.events import Gaussian
from fedllm.privacy.ledger.audit import verify_ledger
from fedllm.privacy.ledger.budget import Charge
from fedllm.privacy.ledger.entries import Head, TamperedError
from fedllm.privacy.ledger.ledger import Ledger


def test_truncation_is_found_with_an_anchor(path, ledger):
    anchor = ledger.head()
    attack(path, "DELETE FROM entries WHERE sequence > 9")
    verify_ledger(path, SIGNER.public_bytes())
    is_found(path, ledger, anchor)
    with pytest.raises(TamperedError, match="exchanged or cut"):
        ledger.head()


def test_truncation_of_everything_and_deletion(path, ledger):
    anchor = ledger.head()
    attack(path, "DELETE FROM tags", "DELETE FROM entries")
    is_found(path, ledger)
    path.unlink()
    with pytest.raises(TamperedError, match="is gone"):
        Ledger.open(path, "site-00", SIGNER, anchor)


def test_old_copy_restored(path, ledger, tmp_path):
    copy = tmp_path / "copy.sqlite"
    shutil.copy(path, copy)
    ledger.reserve(Charge("run", 9, "", (Gaussian(10.0),)), CEILING)
    anchor = ledger.head()
    shutil.copy(copy, path)
    is_found(path, ledger, anchor)
    with pytest.raises(TamperedError):
        ledger.reserve(Charge("run", 10, "", (Gaussian(10.0),)), CEILING)


def test_begun_anew_by_the_site_itself(path, ledger, tmp_path):
    anchor = ledger.head()
    path.unlink()
    again = filled(path)
    verify_ledger(path, SIGNER.public_bytes())
    is_found(path, again, anchor)


def test_anchor_in_the_middle(path, ledger):
    middle = content(path, 6)["previous"]
    verify_ledger(path, None, [Head(5, middle)])
    with pytest.raises(TamperedError, match="rewritten"):
        verify_ledger(path, None, [Head(5, "0" * 64)])


NEXT = Charge("run", 10, "", (Gaussian(10.0),))
USES = {
    "reserve": lambda ledger, paid: ledger.reserve(NEXT, CEILING),
    "commit": lambda ledger, paid: ledger.commit(paid),
    "check": lambda ledger, paid: ledger.check([NEXT], CEILING),
    "events": lambda ledger, paid: ledger.events(""),
    "events of a run": lambda ledger, paid: ledger.events_of_run("run"),
    "head": lambda ledger, paid: ledger.head(),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("last", ["reserve", "commit"])
def test_rolled_back_by_its_own_last_entry_while_it_is_open(path, tmp_path, last, use):
    """Nothing read the file between the last entry and the exchange: what was written counts."""
    ledger = filled(path)
    copy = tmp_path / "before.sqlite"
    if last == "reserve":
        shutil.copy(path, copy)
    paid = ledger.reserve(replace(NEXT, round=9), CEILING)
    if last == "commit":
        shutil.copy(path, copy)
        ledger.commit(paid)
    shutil.copy(copy, path)
    with pytest.raises(TamperedError, match="exchanged or cut while it was in use"):
        USES[use](ledger, paid)
