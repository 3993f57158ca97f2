"""What an operator's list of parties may say, and that a damaged one is refused."""

from __future__ import annotations

import json

import pytest
from support.kits import make_federation

from fedllm.errors import ConfigError
from fedllm.identity.federation_state import load_state, save_state
from fedllm.identity.provisioning import revoke


@pytest.fixture
def folder(tmp_path):
    """A federation of which bob was revoked."""
    make_federation(tmp_path / "fed")
    revoke(tmp_path / "fed", "bob")
    return tmp_path / "fed"


def test_what_was_written_is_read(folder):
    state = load_state(folder)
    before = (folder / "federation.json").read_bytes()
    save_state(folder, state)
    assert (folder / "federation.json").read_bytes() == before
    assert [party.name for party in state.revoked] == ["bob"]
    assert "anne" in {member.name for member in state.members}
    assert "bob" not in {member.name for member in state.members}


@pytest.mark.parametrize("key", ["", "ab" * 31, "ab" * 33, "zz" * 32, " " + "ab" * 32, 7, None])
@pytest.mark.parametrize("where", ["members", "revoked"])
def test_keys_are_of_32_bytes(folder, where, key):
    path = folder / "federation.json"
    state = json.loads(path.read_text())
    assert len(state[where][0]["signing_key"]) == 64
    state[where][0]["signing_key"] = key
    path.write_text(json.dumps(state))
    with pytest.raises(ConfigError, match=r"federation\.json is damaged"):
        load_state(folder)


@pytest.mark.parametrize(("version", "fits"), [(0, True), (-1, False), (1.5, False), ("x", False)])
def test_versions_are_numbered_from_0(folder, version, fits):
    path = folder / "federation.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": version}))
    if fits:
        assert load_state(folder).version == version
        return
    with pytest.raises(ConfigError, match="is damaged"):
        load_state(folder)
