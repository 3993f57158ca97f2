"""Checks of what a round promises beside noise: ledger, accounting, keys, encryption, masks."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedllm.audit.ledgers.recompute import recompute
from fedllm.audit.selftest.building import Setting, build
from fedllm.audit.selftest.federation import RUN, Federation
from fedllm.audit.selftest.material import BATCH, RECORDS, ROUNDS, SITES, STEPS, Material
from fedllm.audit.selftest.rounds import Observed
from fedllm.audit.selftest.statistics import first, uniform
from fedllm.config import BudgetSection
from fedllm.encryption.residues import from_wire, wire_length
from fedllm.encryption.schemes import (
    EncryptedSum,
    PublicRoundKey,
    SecretRoundKey,
    hidden_levels,
)
from fedllm.errors import BudgetError, PeerError, RefusedError
from fedllm.federation.protocol.messages import OpenSum, OpenSumHeader, Train
from fedllm.federation.protocol.round_statement import round_statement
from fedllm.files import write_bytes
from fedllm.privacy.accounting import accountants as accounting
from fedllm.privacy.accounting import calibration
from fedllm.privacy.accounting.events import Event, PoissonGaussian
from fedllm.privacy.ledger.audit import export_ledger, verify_ledger
from fedllm.privacy.ledger.entries import TamperedError

_DELTA = 1e-5
# (sampling rate, steps, epsilon): few and many steps, little and much sampling, and none.
_BUDGETS = ((0.25, 16, 3.0), (0.01, 2000, 8.0), (1.0, 5, 1.0))


def ledger_is_complete(observed: Observed) -> str | None:
    """Every round's steps stand in the ledger, and nothing in it can be changed."""
    rate = min(1.0, BATCH / RECORDS)
    for name in SITES:
        events = observed.events[name]
        if [event.steps for event in events] != [STEPS] * ROUNDS:
            charged = sum(event.steps for event in events)
            return f"{name} took {STEPS * ROUNDS} steps, and its ledger holds {charged}"
        if any(event.sampling_rate != rate for event in events):
            return f"{name} samples at rate {rate:g}, and its ledger says otherwise"
    name = SITES[0]
    federation = observed.federation
    found = verify_ledger(federation.ledger_file(name), federation.identities[name].public_bytes())
    if [run.committed for account in found.accounts for run in account.runs] != [ROUNDS]:
        return "the ledger does not hold each finished round as finished"
    return _changes_are_found(federation, name)


def _changes_are_found(federation: Federation, name: str) -> str | None:
    path = federation.folder / "export.jsonl"
    head = export_ledger(federation.ledger_file(name), path)
    lines = path.read_bytes().splitlines(keepends=True)
    steps = f'"steps":{STEPS}'.encode()
    changed = next(i for i, line in enumerate(lines) if steps in line)
    edited = [*lines]
    edited[changed] = lines[changed].replace(steps, f'"steps":{STEPS - 1}'.encode())
    for what, text in (
        ("an edited ledger", edited),
        ("a ledger without one entry", lines[:changed] + lines[changed + 1 :]),
        ("a ledger cut at the end", lines[:-1]),
    ):
        write_bytes(path, b"".join(text))
        with suppress(TamperedError):
            verify_ledger(path, anchors=(head,))
            return f"{what} was taken for whole"
    return None


def run_above_the_ceiling(material: Material) -> str | None:
    """A whole run above the sites' ceiling is refused."""
    modest = build(material, material.config(), Setting(budget=BudgetSection(epsilon=1.0)))
    try:
        modest.round(1)
    except BudgetError:
        return None
    return "a run above the site's ceiling was not refused"


def accounting_is_right(material: Material, all_cases: bool = True) -> str | None:
    """Noise is chosen so that three foreign accountants find the epsilon that was asked for."""
    for rate, steps, target in _BUDGETS if all_cases else ():
        noise = calibration.solve_noise_multiplier(target, _DELTA, rate, steps)
        if problem := _agrees([PoissonGaussian(rate, noise, steps)], target):
            return problem
    config = material.config(privacy={"epsilon": 3.0})
    federation = build(material, config)
    order, _ = federation.order(1)
    name = SITES[0]
    federation.sites[name].train(order)
    (charged,) = federation.ledger(name).events_of_run(RUN)
    return _agrees([charged] * ROUNDS, 3.0)


def _agrees(events: list[Event], target: float) -> str | None:
    claimed = accounting.epsilon(events, _DELTA).value
    foreign = recompute(events, _DELTA)
    # Both sides round upwards; 2% is far above that and far below any wrong formula.
    if abs(claimed - foreign.value) > 0.02 * foreign.value:
        return f"epsilon {claimed:.3f} is claimed; other accountants find {foreign.value:.3f}"
    if not 0.9 * target <= foreign.value <= 1.01 * target:
        return f"the noise for epsilon {target:g} gives epsilon {foreign.value:.3f}"
    return None


def updates_are_encrypted(observed: Observed) -> str | None:
    """What a site sends is a ciphertext, fresh each time, and says nothing without the key."""
    federation = observed.federation
    plan = federation.plan
    if len({bytes(update) for update in observed.federation.updates}) < ROUNDS * len(SITES):
        return "two updates are the same bytes"
    step = wire_length(plan.ciphertext_primes, plan.poly_degree)
    for update in federation.updates:
        payload = memoryview(update)[-plan.update_bytes :]
        if len(payload) != plan.update_bytes:
            return "an update is shorter than its ciphertexts"
        for start in range(0, plan.ciphertext_bytes, step):
            try:
                residues = from_wire(
                    payload[start : start + step], plan.ciphertext_primes, plan.poly_degree
                )
            except PeerError:
                return "an update is not made of ciphertexts"
            if problem := _looks_random(residues, plan.ciphertext_primes):
                return problem
        if plan.lattice:
            hidden = hidden_levels(plan, bytes(payload))
            if problem := uniform(hidden, 1 << plan.lattice.modulus_bits, "hidden levels"):
                return problem
    return None


def _looks_random(residues: NDArray[np.uint64], primes: tuple[int, ...]) -> str | None:
    return first(
        *(
            uniform(residues[part, place], prime, "polynomials of a ciphertext")
            for part in range(len(residues))
            for place, prime in enumerate(primes)
        )
    )


def updates_are_masked(material: Material) -> str | None:
    """With the key authority's key alone an update still looks random, and never repeats."""
    with_own = build(material, material.config())
    same = Setting(identities=with_own.identities)
    pairs_only = build(material, material.config(encryption={"recover_dropouts": False}), same)
    order, context = with_own.order(1)
    both, _ = _slots(with_own, context)
    own = _minus(both, with_own.mask(SITES[0], order, own=False), with_own.plan.plain_modulus)
    # The same public key, run and attempt give the same pairwise masks.
    pairs, _ = _slots(pairs_only, context)
    again, _ = _slots(build(material, material.config(), same))
    # Another attempt under the same key, as a coordinator that repeats one would have it. By the
    # same sites: under another ledger all masks are other ones in any case.
    second, _ = _slots(pairs_only, context, attempt=2)
    modulus = with_own.plan.plain_modulus
    return first(
        uniform(pairs, modulus, "an update under its pairwise masks"),
        uniform(own, modulus, "an update under its site's own mask"),
        uniform(_minus(again, both, modulus), modulus, "the masks of two rounds"),
        uniform(_minus(second, pairs, modulus), modulus, "the masks of two attempts"),
    )


def _slots(
    federation: Federation, context: Any = None, attempt: int = 1
) -> tuple[NDArray[np.uint64], Any]:
    """Return one site's masked update, opened with the round's key."""
    order, context = federation.order(1, context, attempt)
    payload = federation.payload(SITES[0], order)
    return SecretRoundKey(federation.plan, context).decrypt_sum(payload), context


def _minus(a: NDArray[np.uint64], b: NDArray[np.uint64], modulus: int) -> NDArray[np.uint64]:
    return (a + (np.uint64(modulus) - b)) % np.uint64(modulus)


def keys_are_handled(material: Material) -> str | None:
    """Keys are fresh, open one sum of enough sites once, and foreign signatures are refused."""
    federation = build(material, material.config())
    other, order = federation.opened_order(1), federation.opened_order(2)
    if order.public_key == other.public_key:
        return "two rounds have the same key"
    if problem := _foreign_orders(federation, order, other):
        return problem
    name = SITES[0]
    update = federation.sites[name].train(order).update
    with suppress(PeerError):
        federation.verified(update, SITES[1], order)
        return "one site's update was taken for another's"
    payload = federation.verified(update, name, order)
    if federation.authority.open_sum(_sum_of_one(federation, order, payload)).levels:
        return "the key authority opened a single site's update"
    return _opens_once(federation)


def _foreign_orders(federation: Federation, order: Train, other: Train) -> str | None:
    words = round_statement(order.header.statement)
    forged = federation.identities[SITES[1]].sign(words).hex()
    header = order.header.model_copy(update={"signature": forged})
    for what, wrong in (
        ("a round that the key authority did not sign", replace(order, header=header)),
        ("a round with a key that nobody signed", replace(order, public_key=other.public_key)),
    ):
        if federation.sites[SITES[0]].train(wrong).update:
            return f"{what} was trained"
    return None


def _opens_once(federation: Federation) -> str | None:
    plan = federation.plan
    secret = SecretRoundKey.generate(plan)
    public = PublicRoundKey.from_bytes(plan, secret.public_context())
    total = EncryptedSum(plan, public)
    hidden = bytes(plan.update_bytes - plan.ciphertext_bytes)
    total.add(public.encrypt(np.ones(plan.slots, dtype=np.uint64)) + hidden)
    if (secret.decrypt_sum(total.to_bytes()) != 1).any():
        return "a key did not open what was encrypted with it"
    with suppress(RefusedError):
        secret.decrypt_sum(total.to_bytes())
        return "a round's key opened two sums"
    return None


def _sum_of_one(federation: Federation, order: Train, payload: bytes) -> OpenSum:
    total = EncryptedSum(
        federation.plan, PublicRoundKey.from_bytes(federation.plan, order.public_key)
    )
    total.add(payload)
    header = OpenSumHeader(
        statement=order.header.statement,
        signature=order.header.signature,
        survivors=(SITES[0],),
    )
    return OpenSum(header, total.to_bytes())
