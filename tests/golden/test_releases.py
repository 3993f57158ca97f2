"""A kept release is read for ever, and written today as it was then."""

from __future__ import annotations

import pytest
from golden.kept import V7, identity
from golden.making.releases import release

from fedllm.errors import PeerError
from fedllm.federation.protocol.releases import sign_release, verify_release

TEXT = (V7 / "release" / "release.json").read_text()
DIGEST = "05e3a986c5c6730c4c5f10e91e8ee6892216e9e2f8a9490e33bfd4c307734d38"


def test_a_release_is_read():
    found = verify_release(TEXT, identity("coordinator").public_bytes())
    assert found == release()
    assert found.digest == DIGEST


def test_a_release_is_signed_as_it_was():
    assert sign_release(release(), identity("coordinator")) == TEXT


def test_every_other_key_is_refused():
    with pytest.raises(PeerError, match="signature"):
        verify_release(TEXT, identity("anne").public_bytes())
