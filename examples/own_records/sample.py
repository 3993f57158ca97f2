"""A made-up file of customers' messages, for whoever has none of their own at hand.

    python examples/own_records/sample.py tickets.csv

3,000 rows: a number, a message, the office that answered it, a date. One in ten was answered by
any office, as it comes. The same rows each time.
"""

from __future__ import annotations

import csv
import random
import sys
from pathlib import Path

ROWS, SEED = 3000, 17
STRAY = 0.1
SAID = {
    "Lisbon": (
        "my card was {lost} {where}",
        "the machine kept my card {where}",
        "please send me a new card, mine was {lost}",
        "my card does not work {where}",
    ),
    "Oslo": (
        "the money I sent to {who} has not arrived",
        "I sent {amount} to the wrong account",
        "when does a transfer to {who} arrive",
        "please stop the payment of {amount} to {who}",
    ),
    "Quebec": (
        "why was I charged {amount} {where}",
        "there is a fee of {amount} that I do not know",
        "what does it cost to send money to {who}",
        "please give me back the fee of {amount}",
    ),
    "Turin": (
        "the app does not open {where}",
        "I cannot log in since I have a new phone",
        "the app forgot {who} and all my payees",
        "I do not get the code that the app asks for {where}",
    ),
}
FILLED = {
    "lost": ("lost", "stolen", "bent", "left behind"),
    "where": ("on the train", "at the airport", "in a shop", "abroad", "this morning", "at home"),
    "who": ("my landlord", "my sister", "a shop", "my old employer", "the tax office"),
    "amount": ("12 euros", "40 pounds", "300 dollars", "7.50", "a thousand"),
}
BEFORE = ("", "hello, ", "good morning, ", "again: ", "I am angry, ", "a question: ")
AFTER = ("", ", please help", ", what can I do", ", thank you", ", and it is urgent")


def message(draw: random.Random, office: str) -> str:
    """Return what one customer writes."""
    filled = {name: draw.choice(words) for name, words in FILLED.items()}
    return draw.choice(BEFORE) + draw.choice(SAID[office]).format(**filled) + draw.choice(AFTER)


def rows(count: int = ROWS) -> list[tuple[str, str, str, str]]:
    """Return the rows, the names of the columns first."""
    draw = random.Random(SEED)  # noqa: S311 - texts, no secrets
    found = [("number", "message", "department", "opened")]
    for number in range(count):
        office = draw.choice(sorted(SAID))
        opened = f"2026-{draw.randint(1, 12):02}-{draw.randint(1, 28):02}"
        written = message(draw, office)
        if draw.random() < STRAY:
            office = draw.choice(sorted(SAID))
        found.append((f"T-{number:05}", written, office, opened))
    return found


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("which file shall be written? For example: sample.py tickets.csv")
    with Path(sys.argv[1]).open("x", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows())
