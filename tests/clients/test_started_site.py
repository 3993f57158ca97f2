"""A site's records are read before anybody is answered, and what is wrong is its operator's."""

from __future__ import annotations

import sys
import threading
from types import SimpleNamespace

import pytest

from fedllm.config import AllowSection, SitePolicy
from fedllm.data.columns import MissingColumnError
from fedllm.errors import ConfigError, DataError
from fedllm_client import node

POLICY = SitePolicy(allow=AllowSection(tasks=("classification", "instruction", "causal")))


@pytest.fixture
def said(monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(node, "say", lines.append)
    return lines


class Started:
    def __init__(self, outcome):
        self._outcome = outcome

    def start(self):
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome


def test_what_is_offered_and_what_is_not_is_told(monkeypatch, said):
    monkeypatch.setattr(node, "deployed_site", lambda *_: Started(("classification", "causal")))
    node.started_site(None, POLICY)
    assert said == [
        "the records are read, for classification and causal",
        "not offered, for want of the columns: instruction",
    ]


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        # A source may come back, or be mended.
        (DataError("records.csv row 7: field 'label' is empty"), 1, "row 7"),
        (MissingColumnError("there is no column 'text'"), 1, "no column 'text'"),
        (ConfigError("the policy does not name the site's records"), 2, "does not name"),
        (ValueError("the words of Mrs Example"), 1, "broke off (ValueError)"),
    ],
)
def test_a_site_that_cannot_read_its_records_ends(monkeypatch, said, tmp_path, error, code, words):
    stop, policy = threading.Event(), tmp_path / "site.toml"
    policy.write_text("")
    monkeypatch.setattr(node, "keep_memory_private", lambda: None)
    monkeypatch.setattr(node, "die_with_parent", lambda parent: None)
    monkeypatch.setattr(node, "stop_on_signals", lambda: stop)
    monkeypatch.setattr(node, "read_kit", lambda *_: SimpleNamespace(folder=tmp_path))
    monkeypatch.setattr(node, "load_site_policy", lambda path: POLICY)
    monkeypatch.setattr(node, "deployed_site", lambda *_: Started(error))
    # It would answer until it is told to stop.
    monkeypatch.setattr(node, "serve", lambda kit, app, stop, linked: stop.wait(60))
    monkeypatch.setattr(sys, "argv", ["node", "1", "site", "kit", str(policy)])
    with pytest.raises(SystemExit) as ended:
        node.main()
    assert ended.value.code == code
    assert words in said[-1]
    assert "Example" not in " ".join(said)
