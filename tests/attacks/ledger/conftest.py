from __future__ import annotations

import pytest
from support.ledger import filled


@pytest.fixture
def path(tmp_path):
    return tmp_path / "site.sqlite"


@pytest.fixture
def ledger(path):
    return filled(path)
