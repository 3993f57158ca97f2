"""What a site refuses when it is asked to join, before a round costs anybody anything."""

from __future__ import annotations

import pytest
from support.federation import build, records, small_config

from fedllm.errors import RefusedError
from fedllm.federation.protocol.messages import Join, JoinHeader


@pytest.mark.parametrize(("count", "joins"), [(40, True), (400, False)])
def test_a_site_too_large_for_a_runs_batches_says_so_when_it_is_asked(
    tiny_checkpoint, tmp_path, count, joins
):
    """Not only when it trains: others would have trained for a sum that is too small."""
    config = small_config(
        tiny_checkpoint("bert"),
        privacy={"epsilon": 8.0, "noise": "distributed"},
        training={"local_steps": 1, "optimizer": "sgd", "sampling_rate": 0.5, "batch_size": 8},
    )
    rows = {f"site-{number}": records(count, seed=number) for number in range(3)}
    federation = build(tmp_path, config, rows)
    terms = federation.terms
    header = JoinHeader(
        run="run-1",
        round=1,
        config=terms.config_text,
        labels=terms.labels,
        model=terms.model,
        adapter_length=terms.adapter_length,
    )
    answer = federation.sites["site-0"].join(Join(header)).header
    if joins:
        assert answer.refusal is None or not answer.refusal
        assert answer.member is not None
    else:
        assert "batches might be more than 4 times" in str(answer.refusal)
        assert answer.member is None


def test_records_that_no_longer_suit_a_run_are_refused_before_anything_is_charged(
    tiny_checkpoint, tmp_path, monkeypatch
):
    """A site that was started anew meanwhile is asked to train, and not to join."""
    federation = build(tmp_path, small_config(tiny_checkpoint("bert"), privacy={"epsilon": 8.0}))
    site = federation.sites["site-0"]

    def unsuited(config) -> None:
        raise RefusedError("the records name no persons any more")

    def started_anew(kind, name, message):
        if (kind, name) == ("train request", "site-0"):
            monkeypatch.setattr(site._data, "require_unit", unsuited)
        return message

    federation.tamper = started_anew
    outcome = federation.round()
    assert "name no persons any more" in outcome.dropped["site-0"]
    assert site._account().head().sequence == 1
