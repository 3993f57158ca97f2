"""A coordinator that varies what it may, and writes down all that leaves one site.

All generators can be injected, so whatever differs in what leaves a site was computed from its
records.
"""

from __future__ import annotations

import hashlib
import json
from itertools import count

import numpy as np
import pytest
from support.federation import LABELS, build, small_config

from fedllm.errors import FedllmError
from fedllm.federation.protocol.terms import make_terms
from fedllm.identity.keys import Identity

PEOPLE = {name: Identity.generate(name) for name in ("site-0", "site-1", "authority")}
LOCAL = {"privacy": {"epsilon": 4.0}}
ONE_STEP = {"local_steps": 1, "optimizer": "sgd", "sampling_rate": 0.9}
SHARED = {
    "privacy": {"epsilon": 4.0, "noise": "distributed"},
    "training": ONE_STEP,
    "rounds": {"count": 2, "min_sites": 2},
}
DISCRETE = {
    "privacy": {**SHARED["privacy"], "distribution": "discrete_gaussian"},
    "training": {**ONE_STEP, "learning_rate": 1.0},
    "encryption": {"bits": 20},
    "rounds": SHARED["rounds"],
}
SITE = {"privacy": {"epsilon": 4.0, "unit": "site"}}
EVALUATED = {**LOCAL, "evaluation": {"every": 1, "holdout": 0.4}}
MECHANISMS = {
    "local": LOCAL,
    "moving": {"privacy": {"epsilon": 4.0, "clipping_quantile": 0.5}},
    "shared": SHARED,
    "discrete": DISCRETE,
    "site": SITE,
    "evaluated": EVALUATED,
}


def start(model) -> np.ndarray:
    return model.initial


@pytest.fixture
def injected(monkeypatch):
    """Make what every generator gives, and the time, a function of how often it was asked."""
    calls = count()

    def urandom(size: int) -> bytes:
        return hashlib.shake_256(str(next(calls)).encode()).digest(size)

    def restart() -> None:
        nonlocal calls
        calls = count()

    monkeypatch.setattr("os.urandom", urandom)
    monkeypatch.setattr("fedllm.clock.utc_minute", lambda: "2026-01-01T00:00+00:00")
    return restart


class Coordinator:
    """Runs rounds with one site watched, and writes down all that leaves it."""

    def __init__(self, folder, config, data, policy):
        self.federation = build(folder, config, data, policy, False, identities=PEOPLE)
        self.task = config.task
        self.checkpoint = config.model.path
        self.seen: list[str] = []
        self.federation.tamper = self.listen

    def listen(self, kind, name, message):
        if (kind, name) == ("unmask", "site-1"):
            # It goes away, and the other is asked for its share of what was left.
            return None
        if name == "site-0" and not kind.endswith("request"):
            header, blobs = message.to_wire()
            said = json.loads(header)
            if "ledger" in said:
                said["ledger"] = said["ledger"].split(":")[0]
                said["ledger_signature"] = len(said["ledger_signature"])
            for drawn in ("reveal", "signature"):
                # HPKE and SEAL draw within their libraries; a survivor signs what SEAL drew.
                if drawn in said:
                    said[drawn] = len(said[drawn])
            if "shares" in said:
                said["shares"] = [len(share) for share in said["shares"]]
            sizes = {blob: len(content) for blob, content in blobs.items()}
            self.seen.append(json.dumps([kind, said, sizes], sort_keys=True))
        return message

    def run(self, name, sections, adapter=start, labels=LABELS):
        """Try a run of one round, from an adapter and with labels of the coordinator's choice."""
        federation = self.federation
        federation.config = small_config(
            self.checkpoint, **{"task": self.task, "rounds": {"count": 2}, **sections}
        )
        model = federation.models.get(federation.config, labels)
        federation.terms = make_terms(federation.config, model, name)
        federation.adapter = adapter(model)
        from fedllm.mechanisms import mechanism_of

        noise = mechanism_of(federation.config).announced_noise(1, ())
        for number, purpose in enumerate(("update", "evaluation"), start=1):
            if purpose == "evaluation" and not federation.config.evaluation.every:
                continue
            try:
                federation.round(1, number, noise_multiplier=noise, purpose=purpose)
            except FedllmError as error:
                self.seen.append(f"{type(error).__name__}: {error}")


def strict_join(self, config):
    from fedllm.tasks import task_of

    rows = self.records(config.task)
    task_of(config).encode(rows, strict_join.tokenizer, 16, strict_join.labels)
    return len(rows)
