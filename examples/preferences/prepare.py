"""Make rankings of answers with a known truth: what a bank's customers are told, and how well.

    python examples/preferences/prepare.py runs/preferences-data

Every answer is made of a few sentences, each of which has a worth. An answer's worth is their mean,
less what repeating costs. A rater ranks two or three answers by worth and chance, as Bradley, Terry
and Plackett have it: of two answers the first is preferred with probability sigmoid(difference).
So it is known how often the best possible judge of a pair is right (its share is printed), and that
length says nothing. All texts are made here; nothing is anybody's.

Writes into the folder:

    train.jsonl, test.jsonl   8,000 and 2,000 rankings: prompt, answers, ranks, truth
    compared.jsonl            test.jsonl, whole also where each so manyeth is written alone
    taught.jsonl              3,000 prompts with an answer of any worth, for instruction tuning
    prompts.jsonl             500 public prompts that are in none of the others
    asked.jsonl               200 more, which nothing learns from and nothing is chosen by
    alone.jsonl, alone_taught.jsonl
                              what one of ten banks has of train.jsonl and taught.jsonl
    corpus.jsonl              questions with sentences of any worth, to pretrain a small model on
"""

from __future__ import annotations

import json
import math
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

SEED = 15
TRAIN, TEST, TAUGHT, PROMPTS, CORPUS = 8000, 2000, 3000, 500, 6000
ASKED_PROMPTS, BANKS = 200, 10
# From here on those of the corpus, which no other file has.
NUMBERS = 20_000
# What a sentence is worth that is none of these: cut off, or made up.
UNKNOWN = -2.0
# How much one unit of an answer's mean worth counts.
SHARPNESS = 2.0
ASKED = (
    "How do I {what}?",
    "I want to {what}. What do I do?",
    "Can you help me to {what}?",
    "My {who} asked how to {what}.",
)
WHAT = (
    "block a lost card",
    "change my PIN",
    "raise my limit",
    "open a savings account",
    "send money abroad",
    "stop a standing order",
    "get a new card",
    "dispute a charge",
    "see my last payments",
    "close my account",
    "pay in cash",
    "reset my password",
    "add a second owner",
    "apply for a loan",
    "change my address",
    "get a statement",
)
WHO = ("brother", "mother", "neighbour", "colleague", "daughter", "friend", "boss", "aunt")
WHEN = ("today", "this week", "before my holiday", "by Friday", "from abroad", "without the app")
# What a sentence is worth.
SENTENCES = {
    "Open the card menu in the app.": 2.0,
    "Call the number on the back.": 2.0,
    "We check who you are first.": 1.5,
    "You get a message when done.": 1.5,
    "It takes two days at most.": 1.0,
    "Please keep the receipt for us.": 1.0,
    "Our branch can help as well.": 0.5,
    "Thank you for asking us this.": 0.0,
    "There are several ways for that.": 0.0,
    "It depends on the account, really.": -0.5,
    "Some people find that rather hard.": -0.5,
    "You should have read the terms.": -1.0,
    "That is not our department here.": -1.0,
    "Write your PIN on the card.": -1.5,
    "Tell your password to all callers.": -1.5,
    "Nobody knows, do not ask again.": -2.0,
    "The weather is fine at sea.": -2.0,
}
TEXTS, WORTH = tuple(SENTENCES), tuple(SENTENCES.values())


def question(draw: random.Random) -> str:
    """Return a prompt."""
    asked = draw.choice(ASKED).format(what=draw.choice(WHAT), who=draw.choice(WHO))
    return f"{asked} I need it {draw.choice(WHEN)}." if draw.random() < 0.5 else asked


def answer(draw: random.Random) -> tuple[str, float]:
    """Return an answer of two or three sentences and its worth; some repeat one of them."""
    count = draw.randint(2, 3)
    if draw.random() < 0.1:
        place = draw.randrange(len(TEXTS))
        return " ".join([TEXTS[place]] * count), min(WORTH[place], 0.0) - 1.0
    places = draw.sample(range(len(TEXTS)), count)
    return " ".join(TEXTS[p] for p in places), sum(WORTH[p] for p in places) / count


def worth(text: str) -> float:
    """Return what an answer that a model wrote is worth: as `answer` says it of its own."""
    said = [part.strip() for part in re.findall(r"[^.?!]+[.?!]*", text) if part.strip()]
    if not said:
        return min(WORTH) - 1.0
    mean = sum(SENTENCES.get(part, UNKNOWN) for part in said) / len(said)
    return min(mean, 0.0) - 1.0 if len(set(said)) < len(said) else mean


def ranking(draw: random.Random, number: int) -> dict[str, object]:
    """Return one rater's ranking; ties where chance puts two close together."""
    # A number of its own: no two rankings are one event.
    prompt = f"{question(draw)} ({number})"
    found: dict[str, float] = {}
    count = draw.randint(2, 3)
    while len(found) < count:
        text, worth = answer(draw)
        found[text] = SHARPNESS * worth
    # The largest of a worth and a Gumbel number first: Plackett and Luce.
    liked = [worth - math.log(-math.log(draw.random())) for worth in found.values()]
    ranks = [1 + sum(other > own + 0.02 for other in liked) for own in liked]
    if len(set(ranks)) == 1:
        ranks[liked.index(max(liked))] = 0
    return {
        "prompt": prompt,
        "answers": list(found),
        "ranks": ranks,
        "truth": [round(worth, 3) for worth in found.values()],
    }


def best_possible(rows: list[dict[str, object]]) -> float:
    """Return how often a judge is right, over pairs, who knows what answers are worth."""
    right = pairs = 0.0
    for row in rows:
        ranks, truth = row["ranks"], row["truth"]
        for i, first in enumerate(ranks):  # type: ignore[arg-type]
            for j, second in enumerate(ranks):  # type: ignore[arg-type]
                if first < second:
                    pairs += 1
                    better, worse = truth[i], truth[j]  # type: ignore[index]
                    right += 0.5 if better == worse else better > worse
    return right / pairs


def corpus(draw: random.Random) -> Iterator[dict[str, object]]:
    """Yield what to pretrain on: questions, and sentences of any worth behind each other."""
    for place in range(CORPUS):
        said = " ".join(draw.choice(TEXTS) for _ in range(draw.randint(2, 3)))
        # Half of them with a number behind them, as prompts have it: others too are asked so.
        number = f" ({NUMBERS + place})" if place % 8 >= 4 else ""
        yield {"question": f"{question(draw)}{number}", "answer": said}


def prepare(folder: Path, every: int = 1) -> None:
    """Write the files.

    Parameters
    ----------
    every : int
        Each so manyeth ranking, answer and text is written; all prompts are, and all rankings
        that models are compared on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Nothing here is a secret: the same files each time.
    draw = random.Random(SEED)  # noqa: S311
    rows = [ranking(draw, number) for number in range(TRAIN + TEST)]
    taught = [{"prompt": question(draw), "response": answer(draw)[0]} for _ in range(TAUGHT)]
    first = TRAIN + TEST
    prompts = [{"prompt": f"{question(draw)} ({first + n})"} for n in range(PROMPTS)]
    texts = list(corpus(draw))
    first += PROMPTS
    asked = [{"prompt": f"{question(draw)} ({first + n})"} for n in range(ASKED_PROMPTS)]
    rankings = {"train": rows[:TRAIN:every], "test": rows[TRAIN::every]}
    taught = taught[::every]
    files = {
        **rankings,
        "compared": rows[TRAIN:],
        "taught": taught,
        "prompts": prompts,
        "asked": asked,
        "alone": rankings["train"][::BANKS],
        "alone_taught": taught[::BANKS],
        "corpus": texts[::every],
    }
    for name, lines in files.items():
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(f"{name}.jsonl: {len(lines)} lines")
    best = best_possible(rankings["test"])
    print(f"best possible accuracy of pairs on test.jsonl: {best:.3f}")


if __name__ == "__main__":
    prepare(Path(sys.argv[1]))
