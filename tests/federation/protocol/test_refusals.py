"""What a refusal says: a site's kind alone, the authority's public words, all in a simulation."""

from __future__ import annotations

import pytest

from fedllm.errors import (
    BudgetError,
    ConfigError,
    DataError,
    FedllmError,
    PeerError,
    RefusedError,
    RepeatError,
    StorageError,
    TrainingError,
)
from fedllm.federation.protocol.refusals import Refusal

KINDS = (
    RefusedError,
    BudgetError,
    DataError,
    ConfigError,
    TrainingError,
    StorageError,
    PeerError,
    RepeatError,
)
SECRET, HINT = "the ceiling is 8", "ask for less"


class Own(RefusedError):
    """A kind that no other party knows; its words may name a file."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_site_says_its_kind_and_where_the_details_are(kind):
    found = Refusal.of_site(kind(SECRET, HINT), False)
    assert found.kind == kind.__name__
    assert SECRET not in found.message
    assert found.remedy == "the site's own log has the details; ask its operator"
    assert Refusal.of_site(kind(SECRET, HINT), True) == Refusal(
        kind=kind.__name__, message=SECRET, remedy=HINT
    )
    error = found.to_error("anne")
    assert type(error) is kind
    assert (error.message, error.remedy) == (f"anne: {found.message}", found.remedy)


def test_every_kind_has_words_of_its_own():
    assert len({Refusal.of_site(kind(SECRET), False).message for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize("error", [ValueError(SECRET), FedllmError(SECRET)])
def test_what_nobody_foresaw_is_a_site_that_broke_off(error):
    found = Refusal.of_site(error, False)
    assert (found.kind, found.message) == ("FedllmError", "the site broke off")
    assert type(found.to_error("anne")) is FedllmError


def test_a_kind_of_its_own_travels_as_the_one_that_it_is_of():
    for found in (Refusal.of_site(Own(SECRET), False), Refusal.of_authority(Own(SECRET), False)):
        assert found.kind == "RefusedError"
        assert SECRET not in found.message
    assert Refusal.whole(Own(SECRET, HINT)) == Refusal(
        kind="RefusedError", message=SECRET, remedy=HINT
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_authority_speaks_of_public_numbers_alone(kind):
    found = Refusal.of_authority(kind(SECRET, HINT), False)
    whole = Refusal(kind=kind.__name__, message=SECRET, remedy=HINT)
    if kind in (RefusedError, RepeatError):
        assert found == whole
    else:
        assert (found.kind, found.message) == (kind.__name__, kind.__name__)
        assert found.remedy == "the key authority's own log has the details"
    assert Refusal.of_authority(kind(SECRET, HINT), True) == whole


def test_another_programs_error_is_told_by_its_kind_and_words_within_one_party():
    found = Refusal.whole(ValueError("x"))
    assert found == Refusal(kind="FedllmError", message="ValueError: x")
    assert found.remedy == ""


def test_a_kind_of_a_later_version_is_an_error_all_the_same():
    error = Refusal(kind="LaterError", message="m").to_error("anne")
    assert (type(error), error.message) == (FedllmError, "anne: m")
