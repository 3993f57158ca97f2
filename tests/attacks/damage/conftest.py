from __future__ import annotations

import pytest
from support.kits import make_federation

from fedllm.identity.enrolment import enroll


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A federation with kits for all parties, and a request that was not answered yet."""
    folder = tmp_path_factory.mktemp("damaged")
    make_federation(folder / "federation")
    enroll(folder / "new", "site", "carl")
    return folder
