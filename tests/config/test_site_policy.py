"""What a site's operator declares of its budget."""

from __future__ import annotations

import pytest

from fedllm.config import SitePolicy, parse
from fedllm.errors import ConfigError

DATA = {"train": "records.jsonl", "unit": "patient"}


def policy(account: str, **sections) -> SitePolicy:
    return parse(SitePolicy, {"budget": {"account": account}, **sections}, "site.toml")


@pytest.mark.parametrize("account", ["oncology", "0", "ward-3.b_2"])
def test_an_account_may_be_declared(account):
    assert policy(account, data=DATA).budget.account == account


def test_it_is_refused_where_nobody_could_say_who_is_in_it():
    without = {key: value for key, value in DATA.items() if key != "unit"}
    for sections in ({}, {"data": without}):
        with pytest.raises(ConfigError, match=r"name the\s+column of the persons .* data\.unit"):
            policy("oncology", **sections)


@pytest.mark.parametrize("account", ["", "Oncology", "onkologié", "a b", "-a", "a\n", "x" * 65])
def test_no_name_has_two_spellings(account):
    with pytest.raises(
        ConfigError, match=r"(?s)budget\.account.*: must be 1 to 64 lower-case letters"
    ):
        policy(account, data=DATA)


@pytest.mark.parametrize(
    "entry", ["", "0123abcd", "ab" * 31, "AB" * 32, "gh" * 32, "ab" * 32 + "\n"]
)
def test_what_is_no_fingerprint_of_a_model_is_refused(entry):
    with pytest.raises(ConfigError, match=r"allow\.models.*64 hex digits"):
        parse(SitePolicy, {"allow": {"models": ["ab" * 32, entry]}}, "site.toml")
    allowed = parse(SitePolicy, {"allow": {"models": ["ab" * 32]}}, "site.toml").allow.models
    assert allowed == ("ab" * 32,)
