"""Numbers that are promises: what is signed, stored or said elsewhere rests on their values.

Nothing but this table notices when one of them moves a little. What a ledger's events cost is
recomputed from the privacy numbers for as long as the ledger lives; a limit on the wire that
differs between two versions loses messages; dates and clocks are in the documents.
"""

from __future__ import annotations

from datetime import timedelta
from importlib import import_module

import pytest

LIMITS = {
    "canonical": {"MAX_DEPTH": 32, "_TOO_LARGE": 2**1023},
    "federation.coordinator.answers": {"_MOST_NAMES": 12},
    "federation.protocol.wire": {"MAX_HEADER_BYTES": 16 * 2**20},
    "federation.protocol.neighbours": {"_SEED_BYTES": 32},
    "federation.site.draws": {"MOST_DRAWS": 1024, "MOST_RUNS": 1024},
    "federation.site.journal": {"_MAX_NAMES": 64},
    "federation.site.memory": {"FORMAT": 2},
    "federation.site.orders": {"LARGEST_VALUE": 1000.0},
    "federation.transport.flower": {"_SMALL_BYTES": 2**18, "_NOBODY": -1, "SERVER_NODE": 1},
    "federation.transport.listener": {
        "MAX_REQUEST_BYTES": 8 * 2**20,
        "MAX_ENVELOPE_BYTES": 64 * 2**10,
        "_MAX_DIGITS": 12,
        "_CLOCK_TOLERANCE_S": 60.0,
    },
    "federation.transport.node": {
        "MAX_MESSAGE_BYTES": 4 * 2**30,
        "MAX_REPLY_BYTES": 16 * 2**20,
        "_HEARTBEAT_S": 15.0,
        "_BEAT_EVERY_S": 5.0,
        "_BUSY_POLL_S": 0.2,
        "_IDLE_POLL_S": 2.0,
        "_MAX_WAIT_S": 30.0,
        "_MAX_DIGITS": 12,
    },
    "federation.transport.superlink": {"_SERVER_NODE": 1},
    "identity.certificates": {"_CLOCK_TOLERANCE": timedelta(hours=1)},
    "identity.operator_keys": {"MIN_PASSPHRASE": 16},
    "identity.titles": {"MAX_LETTERS": 100, "_SAFE_LETTERS": 50, "_MOST_BYTES": 16 * 2**20},
    "limits": {"MAX_SITES": 2**14},
    "mechanisms.bounds": {"_DEVIATIONS": 6.0},
    "mechanisms.discrete": {"_LARGEST_LOSS": 1.25, "_LEFT_FOR_FAILURES": 1e-6},
    "mechanisms.shared": {"_LARGEST_BATCH": 4},
    "mechanisms.shares": {"_MOST_TIMES": 4.0},
    "mechanisms.sums": {"FALSE_ALARM": 1e-6, "_FLOATING": 1 + 1e-4},
    "mechanisms.work": {"ADAM_BETA_1": 0.9, "ADAM_BETA_2": 0.999},
    "privacy.accounting.accountants": {"SMALLEST_NUMERIC_DELTA": 1e-10, "_PRV_EVENTS": 4},
    "privacy.accounting.adaptive": {
        "_LARGEST": 1.0,
        "_RATIO": 0.7,
        "_COUNT": 12,
        "_DECLINE": 0.3,
        "_KEPT": 1e-3,
        "_DIGITS": 1e-9,
    },
    "privacy.accounting.calibration": {
        "_DIGITS": 4,
        "_SMALLEST_NOISE": 1e-3,
        "_LARGEST_NOISE": 1e9,
    },
    "privacy.accounting.events": {"MAX_STEPS": 10**12, "MAX_SHARES": 2**14},
    "privacy.accounting.gaussian": {"_SAFETY": 1e-6},
    "privacy.accounting.renyi": {"_ROUNDING": 1e-11},
    "privacy.accounting.words": {"_DIGITS": 4},
    "privacy.adaptive": {"COUNT_WEIGHT": 0.2, "STEP": 0.2, "SMALLEST": 1e-12, "LARGEST": 1e12},
    "privacy.discrete": {
        "SMALLEST_SHARE": 4,
        "LARGEST_SHARE": 2**26,
        "SMOOTHING_VARIANCE": 4.0,
        "ROUNDING_FAILURE": 1e-18,
        "DIVERGENCE_PER_VALUE": 1e-33,
        "TAIL_DEVIATIONS": 16,
        "TAIL_PROBABILITY": 1e-33,
    },
    "privacy.dpsgd": {"_ROUNDING": 2.0**-53, "_SMALLEST_NORMAL": 2.0**-1022},
    "privacy.ledger.entries": {"FORMAT": 1},
    "privacy.ledger.exports": {"FIRST_PAGE": 2**16},
    "privacy.ledger.fingerprints": {"TAG_BYTES": 16},
    "privacy.ledger.store": {"_APPLICATION_ID": int.from_bytes(b"FLL1", "big")},
}
SERVER = {
    "following": {"_QUIET_S": 60.0},
    "journal": {"_SILENCE_S": 60.0},
    "loop": {"_MAX_ATTEMPTS": 3},
    "protections": {"_FAR": 4},
    "remote_parties": {"_REMIND_S": 60.0},
    "service": {"_MAX_IDLE_STARTS": 5},
    "verdicts": {"MOST_REJECTED": 3},
}


@pytest.mark.parametrize(
    ("name", "values"),
    [(f"fedllm.{name}", values) for name, values in LIMITS.items()]
    + [(f"fedllm_server.{name}", values) for name, values in SERVER.items()],
)
def test_a_number_that_is_a_promise_stays(name, values):
    module = import_module(name)
    assert {constant: getattr(module, constant) for constant in values} == values
