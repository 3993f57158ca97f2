"""Who is written for: what breaks, who goes away and who asks for much ends nobody else's text."""

from __future__ import annotations

import threading
import time

import pytest
from support.tiny_models import save_tiny

from fedllm.models.drawing import Sampling
from fedllm.models.generation import Generator, Writing
from fedllm.models.plain import load_plain_model
from fedllm.serving.engine import Busy, Engine
from fedllm.serving.lane import Lane, Ticket
from fedllm.serving.share import Share

WAIT_S = 60


def lane_of(folder):
    loaded = load_plain_model(str(folder))
    return Lane(Generator(loaded.network, loaded.tokenizer, ()))


@pytest.fixture(scope="module")
def decoder(tiny_checkpoint):
    return lane_of(tiny_checkpoint("gpt2"))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return lane_of(save_tiny("t5", tmp_path_factory.mktemp("t5")))


class Asked:
    """One text, and how it ended."""

    def __init__(self, lane, prompt=(5, 6, 7), tokens=4, tenant="ward", left_s=WAIT_S):
        self.endings = []
        self.begun, self.over = threading.Event(), threading.Event()
        deadline = time.monotonic() + left_s
        self.ticket = Ticket(lane, tenant, tuple(prompt), Writing(tokens), self.heard, deadline)

    def heard(self, piece, ending):
        self.begun.set()
        if ending is not None:
            self.endings.append(ending)
            self.over.set()

    def ended(self):
        assert self.over.wait(WAIT_S)
        (ending,) = self.endings
        return ending


class Twice(Sampling):
    """Chooses a token, and then breaks."""

    def drawing(self, prompt, repeat=0):
        left = [5]

        class Choice:
            def next(self, logits):
                if not left:
                    raise ValueError
                return left.pop()

        return Choice()


def submit(engine, *asked):
    engine.submit([one.ticket for one in asked])
    return [one.ended() for one in asked]


@pytest.fixture
def engine():
    kinds = []
    made = Engine(4, 8, kinds.append)
    made.kinds = kinds
    made.start()
    yield made
    made.stop(WAIT_S)


def test_a_prompt_that_cannot_be_read_ends_alone(engine, decoder, pair):
    """Without a token, or longer than the model: the thread writes on for others."""
    for lane in (decoder, pair):
        assert submit(engine, Asked(lane, ()), Asked(lane)) == ["failed", "length"]
    assert submit(engine, Asked(decoder, [5] * 10_000)) == ["failed"]
    assert submit(engine, Asked(decoder)) == ["length"]
    assert engine.kinds == ["ConfigError"] * 3
    assert engine.is_alive


def test_what_breaks_while_it_is_read_ends_no_text_under_way(engine, decoder, monkeypatch):
    own, hold = decoder.batch._logits, threading.Event()

    def logits(ids, mask, cache):
        if (ids == 9).any() and ids.shape[1] > 1:
            raise ValueError
        if len(ids) and ids.shape[1] == 1:
            assert hold.wait(WAIT_S)
        return own(ids, mask, cache)

    monkeypatch.setattr(decoder.batch, "_logits", logits)
    under_way = Asked(decoder, tokens=12)
    engine.submit([under_way.ticket])
    assert under_way.begun.wait(WAIT_S)
    broken, beside = Asked(decoder, (9, 9)), Asked(decoder, tenant="lab")
    engine.submit([broken.ticket, beside.ticket])
    hold.set()
    assert [broken.ended(), beside.ended(), under_way.ended()] == ["failed", "length", "length"]


@pytest.mark.parametrize("short", [False, True])
def test_what_breaks_while_all_are_written_ends_one(short, engine, decoder, monkeypatch):
    own, hold = decoder.batch._logits, threading.Event()

    def logits(ids, mask, cache):
        if ids.shape[1] == 1:
            assert hold.wait(WAIT_S)
            if len(ids) > 1 and short:
                raise MemoryError
        return own(ids, mask, cache)

    monkeypatch.setattr(decoder.batch, "_logits", logits)
    asked = [Asked(decoder, tokens=9), Asked(decoder, (9, 9))]
    engine.submit([asked[0].ticket])
    assert asked[0].begun.wait(WAIT_S)
    if not short:
        asked[1].ticket.writing = Writing(4, sampling=Twice())
    engine.submit([asked[1].ticket])
    hold.set()
    assert [one.ended() for one in asked] == ["length", "failed"]
    assert engine.kinds == ["MemoryError" if short else "ValueError"]
    assert submit(engine, Asked(decoder)) == ["length"]


def test_who_cannot_be_told_ends_alone(engine, decoder):
    deaf, other = Asked(decoder), Asked(decoder, tokens=6)
    told = []

    def heard(piece, ending):
        told.append(ending)
        raise OSError

    deaf.ticket.heard = heard
    engine.submit([deaf.ticket, other.ticket])
    assert other.ended() == "length"
    assert told[-1] in ("timeout", "length")
    assert engine.is_alive


def test_nobody_waits_for_a_thread_that_is_over(decoder, monkeypatch):
    kinds = []
    engine = Engine(4, 8, kinds.append)
    asked = [Asked(decoder), Asked(decoder)]

    def broken(tickets):
        raise RuntimeError

    monkeypatch.setattr(engine, "_add", broken)
    engine.start()
    assert submit(engine, *asked) == ["failed", "failed"]
    engine.stop(WAIT_S)
    assert (engine.is_alive, kinds) == (False, ["RuntimeError"])
    with pytest.raises(Busy):
        engine.submit([asked[0].ticket])


def test_a_long_prompt_keeps_nobody_waiting_and_is_given_up(engine, decoder, monkeypatch):
    """Its reading ends when nobody waits for it, and others are answered before."""
    own, read = decoder.batch._logits, []
    holds = {8: threading.Event(), 60: threading.Event()}

    def logits(ids, mask, cache):
        if ids.shape[1] > 1:
            read.append(ids.shape[1])
            assert mask.shape[1] not in holds or holds[mask.shape[1]].wait(WAIT_S)
        return own(ids, mask, cache)

    monkeypatch.setattr(decoder.batch, "_logits", logits)
    monkeypatch.setattr(decoder.batch, "_piece", 4)
    long = Asked(decoder, [5] * 120)
    engine.submit([long.ticket])
    short = Asked(decoder, (5, 6), tokens=2, tenant="lab")
    engine.submit([short.ticket])
    holds[8].set()
    assert short.ended() == "length"
    assert not long.over.is_set()
    long.ticket.gone = True
    holds[60].set()
    assert long.ended() == "timeout"
    assert sum(read) < 120


# --- a batch that is written from its beginning to its end ---------------------------------------


def test_a_whole_batch_stops_no_other_model_and_is_given_up(engine, decoder, pair, monkeypatch):
    """Of two texts one hangs up: the other is finished, and then nothing is written for nobody."""
    steps, hold = [], threading.Event()
    own = pair.generator.network.forward

    def forward(*arguments, **settings):
        steps.append(1)
        assert hold.wait(WAIT_S)
        return own(*arguments, **settings)

    monkeypatch.setattr(pair.generator.network, "forward", forward)
    leaves, stays = Asked(pair, tokens=30), Asked(pair, tokens=3)
    engine.submit([leaves.ticket, stays.ticket])
    assert submit(engine, Asked(decoder)) == ["length"]
    waits = Asked(pair, tokens=2)
    engine.submit([waits.ticket])
    leaves.ticket.gone = True
    hold.set()
    assert [leaves.ended(), stays.ended(), waits.ended()] == ["timeout", "length", "length"]
    assert len(steps) <= 3 + 2
    assert leaves.ticket.tokens < 30


def test_where_a_whole_batch_breaks_each_is_written_alone(engine, pair, monkeypatch):
    own = pair.generator.network.forward

    def forward(*arguments, **settings):
        found = own(*arguments, **settings)
        if len(found.logits) > 1 or (settings["attention_mask"].sum() > 4):
            raise MemoryError
        return found

    monkeypatch.setattr(pair.generator.network, "forward", forward)
    asked = [Asked(pair), Asked(pair, (5, 6, 7, 8)), Asked(pair)]
    assert submit(engine, *asked) == ["length", "failed", "length"]
    assert engine.kinds == ["MemoryError"] * 2


def test_a_whole_batch_ends_at_its_deadline(engine, pair, monkeypatch):
    late = Asked(pair, tokens=30)
    own = pair.generator.network.forward

    def forward(*arguments, **settings):
        late.ticket.deadline = 0.0
        return own(*arguments, **settings)

    monkeypatch.setattr(pair.generator.network, "forward", forward)
    assert submit(engine, late) == ["timeout"]
    assert late.ticket.tokens == 1


def test_who_is_late_before_the_turn_comes_is_not_written_for(engine, decoder, pair):
    late = [Asked(lane, left_s=-1) for lane in (decoder, pair)]
    assert submit(engine, *late, Asked(decoder)) == ["timeout", "timeout", "length"]
    assert [asked.ticket.tokens for asked in late] == [0, 0]


# --- room ---------------------------------------------------------------------------------------


def test_where_nothing_may_wait_an_idle_service_writes(decoder):
    engine = Engine(2, 0)
    engine.start()
    assert submit(engine, Asked(decoder), Asked(decoder)) == ["length"] * 2
    assert engine.most_texts == 2
    with pytest.raises(Busy):
        engine.submit([Asked(decoder).ticket for _ in range(3)])
    engine.stop(WAIT_S)


def test_the_next_is_of_whom_the_fewest_are_written_for(decoder):
    """And one tenant, however greedy, leaves a place to another."""
    engine = Engine(2, 6, shared=True)
    greedy = [Asked(decoder) for _ in range(4)]
    engine.submit([one.ticket for one in greedy])
    with pytest.raises(Busy):
        engine.submit([Asked(decoder).ticket])
    modest = Asked(decoder, tenant="lab")
    engine.submit([modest.ticket])
    assert engine._admitted() == [greedy[0].ticket, modest.ticket]
    assert engine.most_texts == 4


def test_however_many_are_greedy_one_more_finds_a_place():
    share, held = Share(16, shared=True), {}
    for tenant in range(3):
        held[tenant] = 0
        while share.allows(held[tenant], sum(held.values()), 1):
            held[tenant] += 1
    assert held[0] == 8
    assert min(held.values()) >= 1
    assert share.allows(0, sum(held.values()), 1)
    assert not Share(4, shared=True).allows(0, 4, 1)
    assert Share(4, shared=False).allows(3, 3, 1)
