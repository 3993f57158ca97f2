"""A coordinator that turns against sites and key authority, which are real processes over TLS."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from support.deployment import Deployment
from support.federation import LABELS, small_config
from support.wire import running_superlink, wait_online

from fedllm.errors import FedllmError, PeerError, RefusedError
from fedllm.federation.authority.authority import Authority
from fedllm.federation.coordinator.cohort import gather_cohort
from fedllm.federation.coordinator.rounds import run_round, statement_of
from fedllm.federation.protocol.terms import make_terms
from fedllm.federation.transport.flower import GridPresence
from fedllm.federation.transport.superlink import grid_of
from fedllm.identity.keys import Identity
from fedllm.identity.kits import read_kit
from fedllm.privacy.ledger.audit import verify_ledger
from fedllm.tasks.cache import ModelCache
from fedllm_server.remote_parties import RemoteAuthority, RemoteSites

pytestmark = pytest.mark.slow
RUN = "00112233"


ALL = ("anne", "bob", "carol")


@pytest.fixture(scope="module")
def hostile(tiny_checkpoint, tmp_path_factory):
    """The sites and the authority, and a coordinator in the hands of the test."""
    folder = tmp_path_factory.mktemp("hostile")
    checkpoint = tiny_checkpoint("bert")
    deployment = Deployment(folder, checkpoint, sites=ALL)
    # One of the hospitals has a record that cannot be learned from.
    bad = folder / "carol.jsonl"
    bad.write_text(bad.read_text() + '{"text": "patient 4711 has diabetes", "label": "HIV"}\n')
    config = small_config(checkpoint, rounds={"timeout_s": 300.0, "min_sites": 2})
    kits = deployment.kit("coordinator").parent
    roster = read_kit(deployment.kit("coordinator"), "coordinator").roster
    try:
        with running_superlink(folder, kits, deployment.port) as link:
            deployment.start("authority", *deployment.sites)
            for name in ("authority", *deployment.sites):
                wait_online(link, name)
            with grid_of(link.open_run()) as grid:
                presence, keys = GridPresence(grid), dict(roster.node_keys)
                authority = RemoteAuthority(grid, presence, keys.pop("authority"), 300.0, print)
                sites = RemoteSites(grid, presence, keys, 3, 300.0, print)
                terms = make_terms(config, ModelCache().get(config, LABELS), RUN)
                said: list[str] = []
                cohort = gather_cohort(sites, terms, 1, roster, said.append)
                adapter = ModelCache().get(config, LABELS).adapter()
                yield SimpleNamespace(
                    deployment=deployment,
                    roster=roster,
                    authority=authority,
                    sites=sites,
                    terms=terms,
                    cohort=cohort,
                    adapter=adapter,
                    said=said,
                    attempts=iter(range(1, 100)),
                )
    finally:
        deployment.close()


def play(hostile, *, authority=None, sites=None, roster=None, cohort=None, **changes):
    attempt, members = next(hostile.attempts), cohort or hostile.cohort
    statement = statement_of(hostile.terms, members, 1, attempt, None)
    return run_round(
        sites or hostile.sites,
        authority or hostile.authority,
        hostile.terms,
        roster or hostile.roster,
        statement.model_copy(update=changes),
        members,
        hostile.adapter,
        lambda *_: None,
    )


def charged(hostile, name: str) -> int:
    path = hostile.deployment.kit(name) / "state" / "ledger.sqlite"
    return sum(
        run.committed + run.reserved_only
        for account in verify_ledger(path).accounts
        for run in account.runs
    )


def test_a_record_that_cannot_be_read_does_not_leave_its_site(hostile):
    """Nor does it keep its site away, which would tell that it is there."""
    assert hostile.said == []
    assert [member.name for member in hostile.cohort] == list(ALL)
    outcome = play(hostile)
    assert outcome.survivors == ALL
    log = (hostile.deployment.kit("carol") / "state" / "rounds.jsonl").read_text()
    assert "carol.jsonl row 31: field 'label' is not one of the 3 public labels (" in log
    for private in ("4711", "diabetes", "HIV"):
        assert private not in log


def test_an_honest_round_first(hostile):
    outcome = play(hostile)
    assert outcome.survivors == ALL
    assert charged(hostile, "anne") == charged(hostile, "bob") > 0


def test_a_key_of_the_coordinators_own_in_the_authoritys_place(hostile):
    mallory = Identity.generate("authority")
    forged = replace(hostile.roster, authority=mallory.public_bytes())
    before = charged(hostile, "anne")
    with pytest.raises(PeerError, match="what the site was sent is not what was agreed"):
        play(hostile, authority=Authority(mallory, forged, 1), roster=forged)
    assert charged(hostile, "anne") == before, "not even charged: the site did nothing"
    log = (hostile.deployment.kit("anne") / "state" / "rounds.jsonl").read_text()
    assert "the signature of 'the key authority' does not fit" in log


def test_a_cohort_of_one_site(hostile):
    before = charged(hostile, "anne")
    with pytest.raises(RefusedError, match="a sum of 1 sites could be opened"):
        play(hostile, cohort=hostile.cohort[:1], min_sites=1)
    # Together with the authority: the site's own policy holds all the same.
    kit = read_kit(hostile.deployment.kit("authority"), "authority")
    weak = Authority(kit.identity, kit.roster, 1)
    with pytest.raises(RefusedError, match="anne: the site's policy"):
        play(hostile, authority=weak, cohort=hostile.cohort[:1], min_sites=1)
    log = (hostile.deployment.kit("anne") / "state" / "rounds.jsonl").read_text()
    assert "a sum of 1 sites could be opened" in log
    assert charged(hostile, "anne") == before


def test_a_site_that_the_operator_never_signed_in_the_cohort(hostile):
    from fedllm.federation.protocol.statements import make_member

    mallory = Identity.generate("mallory")
    cohort = (*hostile.cohort, make_member(mallory, "", RUN, 0))
    with pytest.raises(PeerError):
        play(hostile, cohort=cohort)


class Tampering:
    """Changes what passes between the coordinator and its sites."""

    def __init__(self, sites: RemoteSites, order=lambda it: it, answer=lambda name, it: it) -> None:
        self._sites, self._order, self._answer = sites, order, answer

    def __getattr__(self, name):
        return getattr(self._sites, name)

    def train(self, order, names):
        for name, answer in self._sites.train(lambda name: self._order(order(name)), names):
            yield name, answer if isinstance(answer, FedllmError) else self._answer(name, answer)


def test_the_answer_of_an_earlier_attempt_is_not_taken_again(hostile):
    kept = {}

    def replay(name, answer):
        return kept.setdefault(name, answer)

    assert play(hostile, sites=Tampering(hostile.sites, answer=replay)).survivors
    with pytest.raises(PeerError):
        play(hostile, sites=Tampering(hostile.sites, answer=replay))


@pytest.mark.parametrize("part", ["plan", "public_key", "adapter"])
def test_orders_that_were_cut_off_are_refused_and_the_site_goes_on(hostile, part):
    def cut(request):
        return replace(request, **{part: getattr(request, part)[:-7]})

    before = charged(hostile, "anne")
    with pytest.raises(FedllmError):
        play(hostile, sites=Tampering(hostile.sites, order=cut))
    assert charged(hostile, "anne") == before
    assert play(hostile).survivors == ALL


def test_the_authoritys_log_names_every_round_that_it_opened(hostile):
    done = hostile.deployment.fedllm(
        "authority", "log", "--kit", str(hostile.deployment.kit("authority")), "--json"
    )
    entries = json.loads(done.stdout)
    assert {tuple(entry["sites"]) for entry in entries if entry["event"] == "summed"} == {ALL}
    assert {entry["run"] for entry in entries} == {RUN}
