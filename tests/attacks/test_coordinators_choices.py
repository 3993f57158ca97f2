"""Keys of a run by which its coordinator would take a protection away, and what it gets."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from support.federation import addressed, build, config_values, records, small_config

from fedllm.config import AllowSection, BudgetSection, EncryptionSection, RunConfig, SitePolicy
from fedllm.config import parse as parse_config
from fedllm.encryption.reveals import Reveal
from fedllm.encryption.sparse import least_honest
from fedllm.errors import ConfigError, RefusedError
from fedllm.federation.protocol.graphs import planned_graph
from fedllm.federation.protocol.masks import mask_scope, reveal_purpose
from fedllm.federation.protocol.messages import Settle, SettleHeader, Unmask, UnmaskHeader
from fedllm.federation.protocol.statements import hex_bytes, parse_statement
from fedllm.federation.site.data import SiteData
from fedllm.federation.site.policy import check_allowed, check_large
from fedllm.identity.keys import Identity
from fedllm.mechanisms import mechanism_of

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
        federation.sites[name].settle(
            addressed(
                Settle(
                    SettleHeader(**about, survivors=said, around=order.header.around), order.plan
                ),
                name,
            )
        )
        for name in said
    ]
    signatures = {name: one.header.signature for name, one in zip(said, settled, strict=True)}
    reveals = []
    for name in said:
        around = order.header.around
        ask = UnmaskHeader(**about, survivors=said, signatures=signatures, around=around)
        question = addressed(Unmask(ask, order.plan), name)
        answer = federation.sites[name].unmask(question).header
        if answer.reveal:
            blob = held.sealing.open(hex_bytes(answer.reveal), reveal_purpose(statement, name))
            reveals.append(Reveal.from_bytes(blob, mask_scope(statement, plan)))
    assert reveals == []
    assert all(one.header.refusal for one in settled)


# --- large cohorts --------------------------------------------------------------------------------


def large(tmp_path, sites, min_sites=20, **encryption):
    config = small_config(
        tmp_path, rounds={"min_sites": min_sites}, data={"sites": sites}, encryption=encryption
    )
    return config, planned_graph(config, sites), sites


@pytest.mark.parametrize(
    ("sites", "shares", "refused"),
    [
        (250, {"colluding_share": 0.0}, "allow for 0 of 250 sites in league.*expects 50"),
        (1000, {"colluding_share": 0.0, "lost_share": 0.5}, "allow for 0 of 1000"),
        (1000, {"colluding_share": 0.19}, "allow for 190 of 1000 sites in league.*expects 200"),
        (1000, {"lost_share": 0.2}, "encryption.lost_share is 0.2, and allow.lost_share 0.1"),
        (1000, {}, None),
        (1000, {"colluding_share": 0.25, "lost_share": 0.05}, None),
    ],
)
def test_a_handful_of_sites_takes_no_masks_off_in_a_large_cohort(tmp_path, sites, shares, refused):
    """With no colluder allowed for, 18 of 1,000 sites were all around one site in two draws."""
    wanted = large(tmp_path, sites, **shares)
    graph = wanted[1]
    assert not graph.complete
    if refused:
        with pytest.raises(RefusedError, match=refused):
            check_large(*wanted, AllowSection())
    else:
        check_large(*wanted, AllowSection())
        against = replace(graph, colluders=sites // 5)
        # So far from any site alone, whatever `rounds.min_sites` is.
        assert least_honest(sites, against) > sites // 3


@pytest.mark.parametrize(
    ("sites", "shares"),
    [
        (201, {}),
        (250, {"lost_share": 0.4}),
        (1000, {"lost_share": 0.4}),
        (250, {"colluding_share": 0.45}),
        (16384, {"colluding_share": 0.5, "lost_share": 0.5}),
    ],
)
def test_nor_where_the_run_asks_for_so_much_that_all_share_masks_with_all(tmp_path, sites, shares):
    """Then any sum of `rounds.min_sites` is opened, and 19 colluders of 1,000 knew the rest."""
    expected = int(0.2 * sites)
    wanted = large(tmp_path, sites, **shares)
    assert wanted[1].complete
    words = f"allow for 18 of {sites} sites in league, and this site expects {expected}"
    with pytest.raises(RefusedError, match=words) as refused:
        check_large(*wanted, AllowSection())
    assert refused.value.remedy == f"set rounds.min_sites = {expected + 2} or more"
    allow = AllowSection(lost_share=0.5)
    check_large(*large(tmp_path, sites, expected + 2, **shares), allow)
    with pytest.raises(RefusedError, match="in league"):
        check_large(*large(tmp_path, sites, expected + 1, **shares), allow)
    if shares.get("lost_share"):
        with pytest.raises(RefusedError, match=r"allow\.lost_share 0\.1"):
            check_large(*large(tmp_path, sites, expected + 2, **shares), AllowSection())


def test_a_sum_of_all_or_of_a_small_cohort_or_without_masks_is_no_matter_of_graphs(tmp_path):
    for sites, shares in ((200, {}), (1000, {"recover_dropouts": False}), (1000, {"masks": False})):
        wanted = large(tmp_path, sites, **shares)
        assert wanted[1].complete
        check_large(*wanted, AllowSection())


def test_a_site_that_expects_more_in_league_says_so_in_numbers_or_in_parts(tmp_path):
    wanted = large(tmp_path, 1000)
    for allow in (AllowSection(colluders=201), AllowSection(colluding_share=0.21)):
        with pytest.raises(RefusedError, match="allow for 200 of 1000 sites"):
            check_large(*wanted, allow)
    check_large(*wanted, AllowSection(colluders=200))


# --- a site's size --------------------------------------------------------------------------------


def test_refusals_tell_a_sites_size_rounded_down_and_no_more(tmp_path):
    """A coordinator asks with all batch sizes; each question is free."""

    def answers(count):
        data = SiteData(lambda task: records(count), Identity.generate("anne"))
        said = []
        for batch in range(1, 20):
            training = {**SHARED["training"], "sampling_rate": 1.0, "batch_size": batch}
            config = small_config(tmp_path, privacy=SHARED["privacy"], training=training)
            try:
                mechanism_of(config).require_size(data.units(config))
                said.append("")
            except RefusedError as error:
                said.append(str(error).replace(str(batch), ""))
        return said

    assert answers(40) == answers(43) == answers(47)
    assert answers(40) != answers(48)
