"""Whether held-out records are new to a shared model, by a site's own ledger."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from support.federation import records, small_config
from support.kits import make_federation

from fedllm.canonical import sha256_hex
from fedllm.config import to_toml
from fedllm.errors import FedllmError
from fedllm.federation.protocol.terms import shared_config
from fedllm.federation.protocol.wire import digest
from fedllm.federation.site.files import SiteFiles
from fedllm.identity.kits import read_kit
from fedllm.personal.held_out import why_not_new
from fedllm.privacy.accounting.events import PoissonGaussian
from fedllm.privacy.ledger.budget import Ceiling, Charge
from fedllm.privacy.ledger.charges import Carried
from fedllm.privacy.ledger.ledger import Ledger
from fedllm.serving.released import Released

EVENT = PoissonGaussian(0.1, 2.0, 1)
EARLIER = {"run": "earlier", "run_id": "aaaa", "epsilon": 1.0, "unit": "record"}
EARLIER |= {"task": "classification", "held_out": 0.25}
ROWS = records(4)


@pytest.fixture
def kit(tmp_path):
    make_federation(tmp_path / "fed")
    return read_kit(
        Path(shutil.move(tmp_path / "fed" / "kits" / "anne", tmp_path / "anne")), "site"
    )


@pytest.fixture
def ledger(kit):
    return Ledger.open(SiteFiles.of_kit(kit.folder).ledger, "anne", kit.identity)


def asked(holdout=0.25, every=2):
    evaluation = {"every": every, "epsilon": 0.5, "holdout": holdout}
    return small_config(Path("m"), privacy={"epsilon": 4.0}, evaluation=evaluation)


def released(config, *earlier):
    own = {"run": config.name, "run_id": "cccc"}
    about = {**own, "adapter": "0f", "chain": [own, *earlier]}
    return Released(Path("adapter"), config, None, np.zeros(1, np.float32), about)


def take_part(ledger, run, config, unit="record"):
    stated = {"statement": sha256_hex(run.encode()), "order_attempt": 1}
    charge = Charge(run, 1, "", (EVENT,), unit=unit, config=config, **stated)
    ledger.reserve(charge, Ceiling(50.0, 1e-5))


def sent(config):
    return digest(to_toml(shared_config(config)))


def test_they_are_new_where_the_run_held_them_back_as_the_site_was_asked(kit, ledger):
    take_part(ledger, "cccc", sent(asked()))
    assert why_not_new(released(asked()), kit, ROWS) == ""
    assert "evaluation.every" in why_not_new(released(asked(every=0)), kit, ROWS)


@pytest.mark.parametrize("change", [{"holdout": 0.5}, {"every": 1}])
def test_another_run_toml_than_the_ledger_names_is_seen(kit, ledger, change):
    take_part(ledger, "cccc", sent(asked()))
    assert "ledger" in why_not_new(released(asked(**change)), kit, ROWS)


def test_another_unit_than_in_the_run_is_seen(kit, ledger):
    take_part(ledger, "cccc", sent(asked()), unit="person")
    assert "data.unit" in why_not_new(released(asked()), kit, ROWS)


@pytest.mark.parametrize(
    ("before", "new"),
    [
        (EARLIER, True),
        (EARLIER | {"held_out": 0.1}, False),
        (EARLIER | {"held_out": 0.0}, False),
        (EARLIER | {"task": "causal"}, False),
        # The site was in no such run: it trained on records of others.
        (EARLIER | {"run_id": "bbbb", "held_out": 0.0}, True),
        ({}, False),
    ],
)
def test_a_run_before_it_may_have_trained_on_them(kit, ledger, before, new):
    take_part(ledger, "aaaa", sent(asked(holdout=0.1)))
    take_part(ledger, "cccc", sent(asked()))
    said = why_not_new(released(asked(), before), kit, ROWS)
    assert ("may have trained" in said) is not new


def test_a_site_that_was_in_no_run_has_new_records_only(kit, ledger):
    assert why_not_new(released(asked(), {}), kit, ROWS) == ""


@pytest.mark.parametrize(
    ("runs", "words"), [((), "carried over"), (("cccc",), "carried over"), (("dddd",), "")]
)
def test_a_ledger_that_was_carried_over_may_not_know(kit, ledger, runs, words):
    lost = Carried(("ab" * 32,), "cd" * 32, "record", (EVENT,), (EVENT,), runs=runs)
    ledger.carry([lost])
    assert (words or "x") in (why_not_new(released(asked()), kit, ROWS) or "x")


def test_a_ledger_that_was_changed_is_refused(kit, ledger):
    SiteFiles.of_kit(kit.folder).ledger.write_bytes(b"SQLite format 3\x00 and no more")
    with pytest.raises(FedllmError):
        why_not_new(released(asked()), kit, ROWS)
