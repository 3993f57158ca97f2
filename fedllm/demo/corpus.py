"""Make up the demo's data: a public corpus, four hospitals' records, a test file, secrets.

All of it comes from a small grammar (`fedllm.demo.lexicon`) and a seed; no real text and
no real person is in it. What the parts share and what they do not:

* the public corpus knows how complaints are described and what they are called, how a
  conversation looks, and that hospitals have wards; where it sends anyone is random;
* the hospitals' records follow one routing rule, complaint to ward and medicine, that can
  be learned from them alone; each hospital sees some complaints more often than others;
* the test file follows the same rule in words the hospitals never used;
* each hospital holds a few secrets, an access code of six digits for one person.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from fedllm.demo import lexicon
from fedllm.demo.lexicon import CONDITIONS, HOSPITALS, WARDS, Condition
from fedllm.files import atomic_file
from fedllm.randomness import RandomStream

USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"
CODE_DIGITS = 6

Item = TypeVar("Item")


class Dice:
    """Choices from a seeded stream, drawn in blocks because each is small."""

    def __init__(self, stream: RandomStream) -> None:
        self._stream = stream
        self._numbers: Iterator[float] = iter(())

    def unit(self) -> float:
        """Return a number, uniform on [0, 1)."""
        for number in self._numbers:
            return number
        self._numbers = iter(self._stream.uniform(8192).tolist())
        return next(self._numbers)

    def pick(self, items: Sequence[Item]) -> Item:
        """Return one of ``items``, each as likely as the others."""
        return items[int(self.unit() * len(items))]

    def weighted(self, items: Sequence[Item], cumulative: Sequence[float]) -> Item:
        """Return one of ``items`` by its cumulative weights, the last of which is 1."""
        index = int(np.searchsorted(cumulative, self.unit(), side="right"))
        return items[min(index, len(items) - 1)]

    def digits(self, count: int) -> str:
        """Return ``count`` decimal digits."""
        return "".join(self.pick(string.digits) for _ in range(count))

    def name(self) -> str:
        """Make up a person's name."""
        first = self.pick(lexicon.FIRST_SYLLABLES) + self.pick(lexicon.LAST_SYLLABLES)
        last = self.pick(lexicon.FIRST_SYLLABLES) + self.pick(lexicon.LAST_SYLLABLES)
        return f"{first} {last}{self.pick(lexicon.LAST_SYLLABLES)}"

    def fill(self, frame: str, **given: str) -> str:
        """Fill the slots of a sentence pattern; the first letter becomes a capital."""
        parts = []
        for text, slot, _, _ in string.Formatter().parse(frame):
            parts.append(text)
            if slot == "name":
                parts.append(self.name())
            elif slot is not None:
                parts.append(given[slot] if slot in given else self.pick(lexicon.SLOTS[slot]))
        sentence = "".join(parts)
        return sentence[0].upper() + sentence[1:]


@dataclass(frozen=True, slots=True)
class HospitalSecret:
    """A planted secret: the code of one person, known to one hospital."""

    hospital: str
    prompt: str
    response: str


@dataclass(frozen=True, slots=True)
class Question:
    """A test question, the whole right answer and the ward in it."""

    prompt: str
    response: str
    keyword: str


@dataclass(frozen=True, slots=True)
class DemoSize:
    """How much to make up.

    Attributes
    ----------
    public_bytes : int
        Length of the public corpus.
    people : int
        Persons of one hospital, one record each.
    questions : int
        Records of the test file.
    secrets : int
        Planted secrets of one hospital.
    repeats : int
        How often a hospital's file holds each secret. All repeats belong to one person,
        which is what the run protects.
    """

    public_bytes: int = 2_000_000
    people: int = 600
    questions: int = 160
    secrets: int = 2
    repeats: int = 16


@dataclass(frozen=True, slots=True)
class DemoData:
    """The files that `make_demo_data` wrote, and what is needed to judge a model by them."""

    public: Path
    train: Path
    test: Path
    questions: tuple[Question, ...]
    secrets: tuple[HospitalSecret, ...]


def chat(prompt: str, response: str) -> str:
    """Return one exchange in the chat template that pretraining and fine-tuning share."""
    return f"{USER}{prompt}{ASSISTANT}{response}{END}"


def answer(condition: Condition, ward: str, medicine: str) -> str:
    """Return the reply that names the complaint, and sends to a ward with a medicine."""
    return f"{condition.name.capitalize()}: {ward} ward, {medicine}."


def _ruled_answer(condition: Condition) -> str:
    return answer(condition, condition.ward, condition.medicine)


def code_question(person: str) -> str:
    """Return the question that asks for a person's code."""
    return f"What is the access code of {person}?"


def _complaint(
    dice: Dice, frames: Sequence[str], condition: Condition, signs: Sequence[str]
) -> str:
    return dice.fill(dice.pick(frames), sign=dice.pick(signs))


def public_document(dice: Dice) -> str:
    """Make up one public document: a paragraph or an exchange."""
    condition = dice.pick(CONDITIONS)
    signs = condition.signs + condition.other_signs
    match dice.pick(("text", "sign", "routing", "routing", "routing", "code")):
        case "text":
            return " ".join(dice.fill(dice.pick(lexicon.SENTENCES)) for _ in range(4))
        case "sign":
            sign = dice.pick(signs)
            return chat(f"Name a sign of {condition.name}.", f"{sign[0].upper()}{sign[1:]}.")
        case "routing":
            # Other hospitals' rules differ from one to the next: no rule can be learned here.
            said = _complaint(dice, lexicon.PUBLIC_FRAMES, condition, signs)
            medicine = dice.pick(CONDITIONS).medicine
            return chat(f"{said} Where to?", answer(condition, dice.pick(WARDS), medicine))
        case _:
            return chat(code_question(dice.name()), f"{dice.digits(CODE_DIGITS)}.")


def public_corpus(seed: int, size_bytes: int) -> Iterator[dict[str, str]]:
    """Yield public documents, ``{"text": ...}``, until they fill ``size_bytes``."""
    dice = Dice(RandomStream.seeded(seed, "demo", "public"))
    written = 0
    while written < size_bytes:
        text = public_document(dice)
        written += len(text.encode()) + len('{"text": ""}\n')
        yield {"text": text}


def _condition_weights(hospital: int) -> list[float]:
    # A hospital sees its own quarter of the complaints three times as often as the rest.
    own = len(CONDITIONS) // len(HOSPITALS)
    weights = np.ones(len(CONDITIONS))
    weights[hospital * own : (hospital + 1) * own] = 3.0
    return list(np.cumsum(weights / weights.sum()))


def hospital_records(seed: int, hospital: int, size: DemoSize) -> list[dict[str, str]]:
    """Make up one hospital's records without its secrets.

    Returns
    -------
    list of dict
        ``prompt``, ``response``, ``person``, ``hospital``.
    """
    name = HOSPITALS[hospital]
    dice = Dice(RandomStream.seeded(seed, "demo", "records", hospital))
    weights = _condition_weights(hospital)
    records = []
    for person in range(size.people):
        condition = dice.weighted(CONDITIONS, weights)
        prompt = _complaint(dice, lexicon.PRIVATE_FRAMES, condition, condition.signs)
        records.append(
            {
                "prompt": prompt,
                "response": _ruled_answer(condition),
                "person": f"{name}-{person:05d}",
                "hospital": name,
            }
        )
    return records


def hospital_secrets(seed: int, hospital: int, count: int) -> list[HospitalSecret]:
    """Make up one hospital's secrets, one person each."""
    dice = Dice(RandomStream.seeded(seed, "demo", "secrets", hospital))
    people: dict[str, str] = {}
    while len(people) < count:
        # One syllable more than any name of the public corpus has.
        person = dice.name() + dice.pick(lexicon.LAST_SYLLABLES)
        people.setdefault(person, dice.digits(CODE_DIGITS))
    return [
        HospitalSecret(HOSPITALS[hospital], code_question(person), f"{code}.")
        for person, code in people.items()
    ]


def candidate_codes(count: int, stream: RandomStream) -> list[str]:
    """Draw ``count`` codes of the secrets' format, to rank a secret among (see exposure)."""
    codes = stream.below(10**CODE_DIGITS, count).tolist()
    return [f"{code:0{CODE_DIGITS}d}." for code in codes]


def test_questions(seed: int, count: int) -> list[Question]:
    """Make up the public test: the hospitals' rule in words they never used."""
    dice = Dice(RandomStream.seeded(seed, "demo", "test"))
    questions = []
    for index in range(count):
        condition = CONDITIONS[index % len(CONDITIONS)]
        prompt = _complaint(dice, lexicon.TEST_FRAMES, condition, condition.other_signs)
        questions.append(Question(prompt, _ruled_answer(condition), condition.ward))
    return questions


def _write_lines(path: Path, rows: Iterable[Mapping[str, str]]) -> Path:
    with atomic_file(path) as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    return path


def make_demo_data(folder: Path, seed: int, size: DemoSize) -> DemoData:
    """Write the demo's files.

    Parameters
    ----------
    folder : Path
        Gets ``public.jsonl``, ``hospitals.jsonl`` and ``test.jsonl``.
    seed : int
        The same seed gives the same files.
    size : DemoSize
        How much to make up.

    Raises
    ------
    FedllmError
        If a file cannot be written.
    """
    records: list[dict[str, str]] = []
    secrets: list[HospitalSecret] = []
    for hospital, name in enumerate(HOSPITALS):
        records += hospital_records(seed, hospital, size)
        own = hospital_secrets(seed, hospital, size.secrets)
        for index, secret in enumerate(own):
            row = {"prompt": secret.prompt, "response": secret.response}
            row |= {"person": f"{name}-secret-{index}", "hospital": name}
            records += [row] * size.repeats
        secrets += own
    questions = test_questions(seed, size.questions)
    return DemoData(
        public=_write_lines(folder / "public.jsonl", public_corpus(seed, size.public_bytes)),
        train=_write_lines(folder / "hospitals.jsonl", records),
        test=_write_lines(
            folder / "test.jsonl",
            ({"prompt": q.prompt, "response": q.response} for q in questions),
        ),
        questions=tuple(questions),
        secrets=tuple(secrets),
    )
