"""A ledger cut off, restored from a copy or begun anew; only a head kept elsewhere tells."""

from __future__ import annotations

import shutil

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
    data = next(iter(ledger._state.datasets))
    ledger.reserve(Charge("run", 9, data, (Gaussian(10.0),)), CEILING)
    anchor = ledger.head()
    shutil.copy(copy, path)
    is_found(path, ledger, anchor)
    with pytest.raises(TamperedError):
        ledger.reserve(Charge("run", 10, data, (Gaussian(10.0),)), CEILING)


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
