"""Public texts by which this example's model is made smaller: questions, and its labels in words.

    python examples/bank_intents/public_texts.py RUN > texts.txt

The questions are CLINC150's about banks and credit cards, which FEDLLM_DATA has. The labels are
those that RUN released; each is put into forty sentences, and parts of each into thirty of the
questions: CLINC150 has thirty intents of its own, and of most of the labels it has none. Nothing
is read that the run trained on. The texts are the same each time.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).parent
_LONGEST = 200
_MIXED = 30
_SENTENCES = """{}
{}?
i have a question about {}
what about {}
how does {} work
why {}
why is it {}
how do i handle {}
my problem is {}
there is an issue: {}
can you help me with {}
i need help with {}
please tell me about {}
what should i do about {}
what do i do if {}
is it possible: {}
can i get {}
i want {}
where can i find {}
when will {}
how long does {} take
how much is {}
what is the reason for {}
i think there is a mistake, {}
i do not understand {}
it says {} in the app, what does that mean
i was told {}
i am worried about {}
i checked my account and saw {}
yesterday i noticed {}
hi, {}, what now
do you support {}
is there a limit or a fee for {}
who can i talk to about {}
{} is not right
{} still has not happened
{} happened twice
i tried several times, but {}
i am abroad and {}
since this morning {}""".splitlines()


def main() -> None:
    """Print the texts, one a line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", metavar="RUN", type=Path, help="a finished run's folder")
    about = parser.parse_args().run / "adapter" / "shared_model.json"
    named = json.loads(about.read_text(encoding="utf-8"))["labels"]
    labels = [name.replace("_", " ").lower() for name in named]
    asked = questions(Path(os.environ.get("FEDLLM_DATA", HERE / "../../../shared/data")))
    print("\n".join([*asked, *spoken(labels, asked)]))


def questions(data: Path) -> list[str]:
    """Return CLINC150's questions, each once."""
    found: dict[str, str] = {}
    for part in ("train", "val", "test"):
        with gzip.open(data / "clinc_finance" / f"{part}.jsonl.gz", "rt", encoding="utf-8") as file:
            for line in file:
                text = " ".join(json.loads(line)["text"].split())
                if len(text) <= _LONGEST:
                    found.setdefault(re.sub(r"\W+", " ", text.lower()).strip(), text)
    return list(found.values())


def spoken(labels: Sequence[str], asked: Sequence[str]) -> list[str]:
    """Return sentences with the words of labels, each once."""
    whole = [sentence.format(label) for label in labels for sentence in _SENTENCES]
    return list(dict.fromkeys([*whole, *_mixed(labels, asked)]))


def _mixed(labels: Sequence[str], asked: Sequence[str]) -> Iterator[str]:
    """Yield questions in which some words of a label stand in place of others."""
    drawn = random.Random(0)  # noqa: S311 - texts, no secrets
    for label in labels:
        words = label.split()
        for _ in range(_MIXED):
            question = drawn.choice(asked).split()
            count = drawn.randint(1, len(words))
            first = drawn.randint(0, len(words) - count)
            place = drawn.randint(0, len(question))
            end = min(len(question), place + drawn.randint(0, count))
            yield " ".join([*question[:place], *words[first : first + count], *question[end:]])


if __name__ == "__main__":
    main()
