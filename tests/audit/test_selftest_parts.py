"""What the self-test measures with: its accountant, its view of entropy, its tests."""

from __future__ import annotations

import itertools
import os
import random
import secrets
from math import inf

import numpy as np
import pytest

from fedllm import clock
from fedllm.audit.selftest import accountant, statistics
from fedllm.audit.selftest.entropy import (
    changed,
    known_answers,
    scripted_normals,
    watched,
    weak_key,
)
from fedllm.audit.selftest.leaks import words_say_nothing
from fedllm.audit.selftest.material import Material
from fedllm.privacy.accounting.events import Gaussian, PoissonGaussian
from fedllm.privacy.accounting.gaussian import gaussian_epsilon
from fedllm.privacy.noise import gaussian_noise
from fedllm.randomness import RandomStream


@pytest.mark.parametrize("mu", [0.01, 0.3, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-9])
def test_the_accountant_agrees_with_the_programs_closed_form(mu, delta):
    mine, theirs = accountant.epsilon_of(mu**2, delta), gaussian_epsilon(mu, delta)
    assert mine == pytest.approx(theirs, rel=1e-6, abs=1e-9)


def test_the_accountant_inverts_and_adds_up():
    assert accountant.epsilon_of(accountant.mu_squared_of(2.0, 1e-5), 1e-5) == pytest.approx(2.0)
    assert accountant.epsilon_of(1.0, 0.0) == inf
    assert accountant.epsilon_of(0.0, 1e-5) == 0.0
    events = [PoissonGaussian(1.0, 2.0, 3), Gaussian(0.5, 2)]
    assert accountant.spent(events) == pytest.approx(3 / 4 + 2 / 0.25)
    assert accountant.noise_for(3 / 4, 3) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="without sampling"):
        accountant.spent([PoissonGaussian(0.5, 2.0, 3)])


def test_noise_may_be_rounded_up_and_not_down():
    assert accountant.close(1.0, 1.0)
    assert accountant.close(1.01, 1.0)
    assert not accountant.close(0.99, 1.0)
    assert not accountant.close(1.05, 1.0)


def test_every_way_to_ask_the_system_is_noted_and_given_back():
    before = os.urandom, random._urandom, RandomStream.__init__, RandomStream.bytes
    with watched(known_answers("a")) as seen:
        first = os.urandom(8)
        secrets.token_bytes(4)
        random.SystemRandom().getrandbits(16)
        np.random.default_rng()
        RandomStream.secure().normal(3)
    assert (os.urandom, random._urandom, RandomStream.__init__, RandomStream.bytes) == before
    assert first == known_answers("a")(0, 8) == seen.answers[0]
    assert [len(answer) for answer in seen.answers][:3] == [8, 4, 2]
    assert seen.streams[-1].key == seen.answers[-1]
    assert seen.streams[-1].bytes >= 3 * 8


def test_what_is_noted_is_given_back_after_an_error_too():
    before = os.urandom
    with pytest.raises(KeyError), watched(), scripted_normals(np.zeros(3)):
        raise KeyError
    assert os.urandom is before
    assert len(set(RandomStream.secure().normal(3))) == 3


def test_the_ledgers_clock_stands_only_where_entropy_is_given():
    with watched(known_answers("a")):
        stands = clock.utc_minute()
    with watched():
        goes = clock.utc_minute()
    assert stands < "2026" < goes


def test_a_minute_that_begins_meanwhile_changes_no_word(tmp_path, monkeypatch):
    minute = itertools.count(10)
    monkeypatch.setattr(clock, "utc_minute", lambda: f"2026-01-01T00:{next(minute)}+00:00")
    assert words_say_nothing(Material(tmp_path), all_cases=False) is None


def test_one_answer_is_changed_in_one_byte_or_in_all():
    right = known_answers("a")
    assert changed(right, 1)(0, 4) == right(0, 4)
    assert all(a != b for a, b in zip(changed(right, 1)(1, 4), right(1, 4), strict=True))
    differ = [a != b for a, b in zip(changed(right, 1, 2)(1, 4), right(1, 4), strict=True)]
    assert differ == [False, False, True, False]


@pytest.mark.parametrize(
    ("draw", "problem"),
    [
        (lambda: RandomStream.secure().bytes(1), None),
        (lambda: None, "no stream"),
        (RandomStream.secure, "no stream"),
        (lambda: RandomStream.seeded(1).bytes(1), "not what the operating system gave"),
        (lambda: RandomStream(os.urandom(8) * 4).bytes(1), "not what the operating system gave"),
        (lambda: RandomStream(bytes(32)).bytes(1), "not what the operating system gave"),
    ],
)
def test_keys_are_judged(draw, problem):
    with watched() as seen:
        draw()
    found = weak_key(seen)
    assert (found is None) if problem is None else problem in found


def test_a_key_that_serves_twice_is_seen():
    with watched() as seen:
        key = os.urandom(32)
        for _ in range(2):
            RandomStream(key).bytes(1)
    assert "same key" in weak_key(seen)


def test_scripted_numbers_reach_the_noise():
    script = np.array([1.0, -2.0, 5.0])
    with scripted_normals(script):
        assert gaussian_noise(RandomStream.secure(), 2, 3.0).tolist() == [3.0, -6.0]


def test_tails_and_coarse_numbers_are_seen():
    values = np.random.default_rng(0).normal(size=200_000)
    assert statistics.tails(values, "x") is None
    assert "beyond 3 deviations" in statistics.tails(np.clip(values, -2.9, 2.9), "x")
    assert statistics.fine(values, "x") is None
    assert statistics.fine(values.astype(np.float32), "x") is None
    assert "too coarse" in statistics.fine(values.astype(np.float16), "x")
    assert "too coarse" in statistics.fine(np.tile(values[:1000], 5), "x")
