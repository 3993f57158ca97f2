"""Ranking on the page, as a browser does it."""

from __future__ import annotations

import html
import re

import httpx
import pytest
from support.rating import QUESTIONS, answers_to, lines, page, session


@pytest.fixture
def opened(tmp_path):
    with session(tmp_path) as own, page(own) as served, httpx.Client() as client:
        yield Rater(served, client)


class Rater:
    """Sends forms as a browser does."""

    def __init__(self, served, client):
        self.served, self._client = served, client
        self.origin = f"http://127.0.0.1:{served.port}"

    def look(self):
        return self._client.get(self.served.url)

    def send(self, order="rank", follow=True, **fields):
        text = self.look().text
        unit = re.search('name="unit" value="([0-9a-f]{64})"', text)
        form = {"order": order, "step": re.search('name="step" value="([0-9]+)"', text)[1]}
        form |= ({"unit": unit[1]} if unit else {}) | fields
        return self._client.post(
            self.served.url, data=form, headers={"origin": self.origin}, follow_redirects=follow
        )


def test_a_rater_ranks_with_the_keyboard_alone(opened, tmp_path):
    found = opened.look()
    assert found.status_code == 200
    assert "Prompt 1 of 3" in found.text
    assert "A child of two." in found.text
    shown = re.findall(r'dir="auto">([^<]*answer \d)</div>', found.text)
    assert sorted(map(html.unescape, shown)) == sorted(answers_to(QUESTIONS[0]).texts)
    after = opened.send(words="2 1=3")
    assert (after.status_code, len(after.history)) == (200, 1)
    assert "Prompt 2 of 3" in after.text
    (line,) = lines(tmp_path / "ratings.jsonl")
    ranks = dict(zip(line["answers"], line["ranks"], strict=True))
    assert [ranks[html.unescape(text)] for text in shown] == [2, 1, 2]
    # The same words as on a terminal.
    assert "Prompt 3 of 3" in opened.send(words="s").text
    assert "You said: s" in opened.send(words="b").text
    assert "Prompt 3 of 3" in opened.send(words="").text
    assert opened.send(words="u").text.count("You said") == 0
    assert "1 of 3 ranked" in opened.look().text


def test_a_rater_chooses_places_and_buttons(opened, tmp_path):
    places = {"place-1": "3", "place-2": "1", "place-3": "3"}
    assert "choose a place" in opened.send("places", **places | {"place-2": ""}).text
    assert "choose a place" in opened.send("places", **places | {"place-2": "9"}).text
    assert "Prompt 2 of 3" in opened.send("places", **places, words="1 2 3").text
    (line,) = lines(tmp_path / "ratings.jsonl")
    assert [line["ranks"][place] for place in line["shown"]] == [2, 1, 2]
    assert "Prompt 3 of 3" in opened.send("s").text
    assert "Prompt 2 of 3" in opened.send("b").text
    assert "You said" not in opened.send("u").text


def test_what_cannot_be_read_is_told_and_kept_in_its_field(opened, tmp_path):
    found = opened.send(words="1 <2>")
    assert found.status_code == 422
    assert 'role="alert"' in found.text
    assert 'value="1 &lt;2&gt;"' in found.text
    assert not (tmp_path / "ratings.jsonl").read_text()


def test_the_end_and_the_way_out(opened):
    for _ in QUESTIONS:
        last = opened.send(words="1 2 3")
    assert "<h1>The end</h1>" in last.text
    assert "Prompt 3 of 3" in opened.send("b").text
    gone = opened.send("q")
    assert "Everything is kept" in gone.text
    assert "<form" not in gone.text
    assert opened.served.stop.wait(10)


def test_a_form_of_another_prompt_ranks_nothing(opened, tmp_path):
    """Sent twice, or from a tab that was left open."""
    stale = opened.send(words="1 2 3", unit="0" * 64)
    assert stale.status_code == 409
    assert "was not kept" in stale.text
    assert "Prompt 1 of 3" in stale.text
    assert not (tmp_path / "ratings.jsonl").read_text()


@pytest.mark.parametrize("at_the_end", [False, True])
@pytest.mark.parametrize("way", ["button", "typed"])
def test_a_form_that_is_sent_twice_takes_one_rating_back(opened, tmp_path, at_the_end, way):
    for _ in QUESTIONS if at_the_end else QUESTIONS[:2]:
        opened.send(words="1 2 3")
    before = len(lines(tmp_path / "ratings.jsonl"))
    step = re.search('name="step" value="([0-9]+)"', opened.look().text)[1]
    if way == "typed" and not at_the_end:
        order = {"order": "rank", "words": " U "}
    else:
        order = {"order": "u"}
    assert opened.send(**order, step=step).status_code == 200
    again = opened.send(**order, step=step)
    assert again.status_code == 409
    assert "was not done" in again.text
    assert [one["state"] for one in lines(tmp_path / "ratings.jsonl")[before:]] == ["open"]
    # Going back is told from going back once more as well.
    step = re.search('name="step" value="([0-9]+)"', again.text)[1]
    number = int(re.search(r"Prompt (\d) of 3", again.text)[1])
    assert f"Prompt {number - 1} of 3" in opened.send("b", step=step).text
    assert f"Prompt {number - 1} of 3" in opened.send("b", step=step).text


@pytest.mark.parametrize("order", ["rank", "places", "s", "u", "b"])
def test_a_form_that_says_nothing_of_its_page_does_nothing(opened, tmp_path, order):
    opened.send(words="1 2 3")
    before = (tmp_path / "ratings.jsonl").read_text()
    form = {"order": order, "words": "3 2 1", "place-1": "1", "place-2": "2", "place-3": "2"}
    found = httpx.post(opened.served.url, data=form, headers={"origin": opened.origin})
    assert found.status_code == 409
    assert (tmp_path / "ratings.jsonl").read_text() == before


def test_a_page_that_waits_looks_again_by_itself(tmp_path):
    import threading

    go_on = threading.Event()

    def slow(question, given_up):
        while not (go_on.wait(0.05) or given_up()):
            pass
        return None if given_up() else answers_to(question)

    with (
        session(tmp_path, sampling=slow) as own,
        page(own) as served,
        httpx.Client() as client,
    ):
        waiting = client.get(served.url).text
        assert 'http-equiv="refresh" content="2"' in waiting
        assert "The model writes answers" in waiting
        go_on.set()
        assert own.item(30) is not None
        shown = client.get(served.url).text
        assert "Prompt 1 of 3" in shown
        assert "refresh" not in shown


def test_what_breaks_is_told_to_the_rater(tmp_path):
    def broken(question, given_up):
        raise MemoryError("Zebediah")

    with (
        session(tmp_path, sampling=broken) as own,
        page(own) as served,
        httpx.Client() as client,
    ):
        for _ in range(100):
            found = client.get(served.url)
            if found.status_code == 500:
                break
        assert "cannot be sampled (MemoryError)" in found.text
        assert "Zebediah" not in found.text


def test_the_page_can_be_read_by_all(opened):
    """Every field has a label, every part a heading, nothing needs a script or another file."""
    text = opened.look().text
    assert '<html lang="en">' in text
    names = set(re.findall(r'<(?:input|select)[^>]* name="([^"]+)"', text))
    assert names == {"step", "unit", "words", "place-1", "place-2", "place-3"}
    assert '<label for="words">' in text
    assert len(re.findall(r"<label>Place of answer \d\s*<select", text)) == 3
    for labelled in re.findall(r'aria-(?:labelledby|describedby)="([^"]+)"', text):
        assert f'id="{labelled}"' in text
    assert "<script" not in text
    assert not re.search(r"\b(src|href|url\()", text)
