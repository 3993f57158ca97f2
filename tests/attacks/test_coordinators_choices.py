"""Keys of a run by which its coordinator would take a protection away, and what it gets."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from support.federation import build, config_values, small_config

from fedllm.config import AllowSection, BudgetSection, EncryptionSection, RunConfig, SitePolicy
from fedllm.config import parse as parse_config
from fedllm.encryption.masks import Reveal
from fedllm.errors import ConfigError, RefusedError
from fedllm.federation.protocol.masks import hex_bytes, mask_scope, reveal_purpose
from fedllm.federation.protocol.messages import Settle, SettleHeader, Unmask, UnmaskHeader
from fedllm.federation.protocol.statements import parse_statement
from fedllm.federation.site.policy import check_allowed

SHARED = {
    "privacy": {"epsilon": 8.0, "noise": "distributed"},
    "training": {
        "local_steps": 1,
        "optimizer": "sgd",
        "learning_rate": 1.0,
        "sampling_rate": 0.2,
        "batch_size": 8,
    },
}
DISCRETE = {
    **SHARED,
    "privacy": {**SHARED["privacy"], "distribution": "discrete_gaussian"},
    "encryption": {"bits": 20},
}
WHOLE = {"privacy": {**SHARED["privacy"], "unit": "site"}}
WITHOUT_MASKS = [{"masks": False}, {"scheme": "ckks"}, {"scheme": "none"}]


def without_masks(config: RunConfig, **encryption) -> RunConfig:
    """A configuration as no class would read it: validation is left out."""
    section = EncryptionSection(**{"bits": config.encryption.bits, **encryption})
    return config.model_copy(update={"encryption": section})


@pytest.mark.parametrize("sections", [SHARED, DISCRETE, WHOLE], ids=["shared", "discrete", "whole"])
@pytest.mark.parametrize("encryption", WITHOUT_MASKS, ids=["bfv", "ckks", "none"])
def test_shared_noise_without_masks_is_refused_everywhere(tmp_path, sections, encryption):
    """One opened update would hold one share: epsilon 44.9 in a run that promises 8."""
    values = config_values(tmp_path, **sections)
    values["encryption"] = {**values.get("encryption", {}), **encryption}
    with pytest.raises(ConfigError, match="needs masks"):
        parse_config(RunConfig, values, "test")
    config = without_masks(small_config(tmp_path, **sections), **encryption)
    owner_asks_for_nothing = AllowSection(
        min_cohort=1, encryption="optional", masks="optional", non_private=True
    )
    with pytest.raises(RefusedError, match="shares its noise among the sites and has no masks"):
        check_allowed(config, owner_asks_for_nothing, "")


@pytest.mark.parametrize("encryption", WITHOUT_MASKS[:2], ids=["bfv", "ckks"])
def test_a_site_demands_masks_unless_its_owner_says_otherwise(
    tiny_checkpoint, tmp_path, encryption
):
    config = small_config(tiny_checkpoint("bert"), privacy={"epsilon": 8.0}, encryption=encryption)
    for masks, refused in (("required", True), ("optional", False)):
        folder = tmp_path / masks
        folder.mkdir()
        policy = SitePolicy(
            budget=BudgetSection(epsilon=100.0),
            allow=AllowSection(min_cohort=1, masks=masks),
        )
        federation = build(folder, config, policy=policy)
        if refused:
            with pytest.raises(RefusedError, match=r"allow\.masks is 'required'"):
                federation.round()
        else:
            assert federation.round().survivors
    assert AllowSection().masks == "required"


def test_without_own_masks_nobody_reveals_what_opens_one_update(tiny_checkpoint, tmp_path):
    """Coordinator and authority call a site dropped whose update they hold.

    The others would reveal the seeds that they share with it, and without a mask of its own
    these are all that hides it.
    """
    config = small_config(tiny_checkpoint("bert"), encryption={"recover_dropouts": False})
    federation = build(tmp_path, config)
    held = SimpleNamespace(orders=[])

    def listen(kind, name, message):
        if kind == "train request":
            held.orders.append(message)
        return message

    federation.tamper = listen
    open_sum = federation.authority.open_sum

    def collude(request):
        held.key, held.sealing = federation.authority._secret, federation.authority._sealing
        return open_sum(request)

    federation.authority.open_sum = collude
    assert federation.round().survivors == ("site-0", "site-1", "site-2")
    plan, order = held.key.plan, held.orders[0]
    about = {"statement": order.header.statement, "signature": order.header.signature}
    statement = parse_statement(order.header.statement)
    said = ("site-0", "site-1")
    settled = [
        federation.sites[name].settle(Settle(SettleHeader(**about, survivors=said), order.plan))
        for name in said
    ]
    signatures = tuple(one.header.signature for one in settled)
    reveals = []
    for name in said:
        ask = UnmaskHeader(**about, survivors=said, signatures=signatures)
        answer = federation.sites[name].unmask(Unmask(ask, order.plan)).header
        if answer.reveal:
            blob = held.sealing.open(hex_bytes(answer.reveal), reveal_purpose(statement, name))
            reveals.append(Reveal.from_bytes(blob, mask_scope(statement, plan)))
    assert reveals == []
    assert all(one.header.refusal for one in settled)
