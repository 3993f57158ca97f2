"""What a site does once an attempt for its masks, however often it is asked."""

from __future__ import annotations

from collections import Counter

from support.federation import build, small_config

from fedllm.encryption.pairs import MaskKey
from fedllm.federation.site import sums


def test_masks_are_agreed_on_once_an_attempt(tiny_checkpoint, tmp_path, monkeypatch):
    """It costs more than all the rest of a large cohort's round."""
    federation = build(tmp_path, small_config(tiny_checkpoint("bert")))
    agreed: Counter[str] = Counter()
    secrets, keys = sums.pair_secrets, []

    def counted(identity, *about):
        agreed[identity.name] += 1
        return secrets(identity, *about)

    class Key(MaskKey):
        def __init__(self, private_key):
            super().__init__(private_key)
            keys.append(self)

    monkeypatch.setattr(sums, "pair_secrets", counted)
    monkeypatch.setattr(sums, "MaskKey", Key)
    for number in (1, 2):
        federation.round(number, number)
        assert agreed == dict.fromkeys(federation.sites, number)
    # With each other site's key once a run.
    assert [len(key._agreed) for key in keys] == [len(federation.sites) - 1] * len(federation.sites)
