"""Where a party computes is its own affair: nothing that is sent says it, or is followed."""

from __future__ import annotations

from typing import Any, cast

import pytest
from support.federation import small_config

from fedllm.config import AllowSection, SiteModelSection, SitePolicy, load_site_policy, to_toml
from fedllm.errors import ConfigError
from fedllm.federation.protocol.terms import shared_config
from fedllm.federation.site.orders import OrderReader
from fedllm_client import node
from fedllm_client.machine import check_training

ALLOW = AllowSection(min_cohort=1, encryption="optional", masks="optional", non_private=True)


def run(tmp_path, device):
    config = small_config(tmp_path)
    engine = config.engine.model_copy(update={"device": device, "threads": 2})
    return config.model_copy(update={"engine": engine})


def reader(device) -> OrderReader:
    nothing = cast(Any, None)
    return OrderReader(nothing, nothing, ALLOW, nothing, "here", device)


@pytest.mark.parametrize("device", [None, "cpu", "cuda", "auto"])
def test_a_coordinators_gpu_is_not_sent(device, tmp_path):
    sent = to_toml(shared_config(run(tmp_path, device)))
    assert "device" not in sent
    assert "cuda" not in sent
    # The same text, and so the same digest, whatever the coordinator has.
    assert sent == to_toml(shared_config(run(tmp_path, None)))


@pytest.mark.parametrize("theirs", [None, "cpu", "cuda:3", "auto"])
@pytest.mark.parametrize("own", [None, "cuda", "cpu"])
def test_a_site_computes_where_it_says_itself(theirs, own, tmp_path):
    asked = to_toml(run(tmp_path, theirs))
    found = reader(own).configuration(asked, "0" * 64)
    assert found.engine.device == own
    assert found.engine.threads == 2
    without = asked.partition("[engine]")[0]
    assert reader(own).configuration(without, "0" * 64).engine.device == own


def test_what_is_no_section_is_refused_as_ever(tmp_path):
    asked = to_toml(run(tmp_path, None)).partition("[engine]")[0]
    with pytest.raises(ConfigError, match="engine"):
        reader("cuda").configuration(f"engine = 3\n{asked}", "0" * 64)


def test_a_policy_names_a_gpu(tmp_path):
    path = tmp_path / "site.toml"
    path.write_text('[model]\npath = "model"\ndevice = "cuda:1"\n[data]\ntrain = "t.jsonl"\n')
    policy = load_site_policy(path)
    assert policy.model == SiteModelSection(path=str(tmp_path / "model"), device="cuda:1")
    path.write_text('[model]\npath = "model"\ndevice = "gpu"\n')
    with pytest.raises(ConfigError, match=r"model\.device"):
        load_site_policy(path)


def test_a_gpu_that_is_not_there_is_refused_before_a_record_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    policy = SitePolicy.model_validate(
        {"model": {"path": "x", "device": "cuda"}, "data": {"train": "not there.jsonl"}}
    )
    words = r"model\.device of the site's policy = 'cuda'"
    # No kit is looked at either.
    with pytest.raises(ConfigError, match=words):
        node.started_site(cast(Any, None), policy)
    with pytest.raises(ConfigError, match=words):
        check_training(str(tmp_path), (), "cuda")
