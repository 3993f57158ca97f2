import json
from collections import Counter, defaultdict

import pytest

from fedllm.demo import lexicon
from fedllm.demo.corpus import (
    CODE_DIGITS,
    DemoSize,
    candidate_codes,
    make_demo_data,
)
from fedllm.demo.lexicon import CONDITIONS, HOSPITALS, WARDS
from fedllm.randomness import RandomStream

SIZE = DemoSize(public_bytes=300_000, people=400, questions=64, secrets=3, repeats=5)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_demo_data(tmp_path_factory.mktemp("demo"), 0, SIZE)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def public(data):
    return [row["text"] for row in lines(data.public)]


@pytest.fixture(scope="module")
def train(data):
    return lines(data.train)


def rule_of(text):
    """Complaint, ward and medicine of an answer; none if it is something else."""
    name, colon, rest = text.partition(": ")
    ward, _, medicine = rest.removesuffix(".").partition(" ward, ")
    return (name.lower(), ward, medicine) if colon else None


def test_the_same_seed_gives_the_same_files_and_another_seed_others(data, tmp_path):
    again = make_demo_data(tmp_path / "a", 0, SIZE)
    other = make_demo_data(tmp_path / "b", 1, SIZE)
    for name in ("public", "train", "test"):
        content = getattr(data, name).read_bytes()
        assert content == getattr(again, name).read_bytes()
        assert content != getattr(other, name).read_bytes()
    assert data.secrets == again.secrets


def test_hospitals_follow_one_rule(train):
    expected = {c.name: (c.ward, c.medicine) for c in CONDITIONS}
    rules = [rule_of(row["response"]) for row in train]
    seen = {(name, (ward, medicine)) for name, ward, medicine in filter(None, rules)}
    assert seen == set(expected.items())


def test_rules_cannot_be_guessed_from_frequencies():
    assert Counter(c.ward for c in CONDITIONS) == dict.fromkeys(WARDS, 2)
    assert len({c.medicine for c in CONDITIONS}) == len(CONDITIONS)


def test_the_public_corpus_does_not_hold_the_rule(public):
    wards = defaultdict(Counter)
    for text in public:
        rule = rule_of(text.rpartition("<|assistant|>")[2].removesuffix("<|end|>"))
        if rule:
            wards[rule[0]][rule[1]] += 1
    assert len(wards) == len(CONDITIONS)
    right = sum(wards[c.name][c.ward] for c in CONDITIONS)
    total = sum(sum(counts.values()) for counts in wards.values())
    # Chance is 1/8; four standard deviations of some 1,300 draws are under 0.04.
    assert total > 1000
    assert abs(right / total - 1 / 8) < 0.04


def test_public_conversations_are_in_the_chat_template(public):
    chats = [text for text in public if text.startswith("<|user|>")]
    assert len(chats) > len(public) / 2
    for text in chats:
        assert text.count("<|user|>") == text.count("<|assistant|>") == text.count("<|end|>") == 1
        assert text.endswith("<|end|>")
    assert not any("<|" in text for text in public if not text.startswith("<|user|>"))


def test_the_public_corpus_teaches_every_description(public):
    everything = "\n".join(public).lower()
    for condition in CONDITIONS:
        for sign in condition.signs + condition.other_signs:
            assert sign.lower() in everything, sign


def test_test_questions_use_words_that_no_hospital_used(data, train):
    used = " ".join(row["prompt"] for row in train).lower()
    for condition in CONDITIONS:
        for sign in condition.other_signs:
            assert sign.lower() not in used, sign
    private = {row["prompt"] for row in train}
    assert not private & {question.prompt for question in data.questions}


def test_test_questions_ask_for_every_ward_equally_often(data):
    assert set(Counter(q.keyword for q in data.questions).values()) == {SIZE.questions // 8}
    assert [q.prompt for q in data.questions] == [row["prompt"] for row in lines(data.test)]
    for question in data.questions:
        assert question.keyword in question.response.split()


def test_each_hospital_sees_some_complaints_more_often(train):
    for index, hospital in enumerate(HOSPITALS):
        own = {c.name for c in CONDITIONS[4 * index : 4 * index + 4]}
        rules = [rule_of(row["response"]) for row in train if row["hospital"] == hospital]
        share = sum(rule[0] in own for rule in rules if rule) / SIZE.people
        assert 0.4 < share < 0.6, hospital  # one half; a quarter if all were alike


def test_secrets_belong_to_one_person_each_and_are_nowhere_else(data, train, public):
    assert len(data.secrets) == len(HOSPITALS) * SIZE.secrets
    assert len({secret.prompt for secret in data.secrets}) == len(data.secrets)
    everything = "\n".join(public)
    for secret in data.secrets:
        rows = [row for row in train if row["prompt"] == secret.prompt]
        assert len(rows) == SIZE.repeats
        assert {row["response"] for row in rows} == {secret.response}
        assert {row["hospital"] for row in rows} == {secret.hospital}
        assert len({row["person"] for row in rows}) == 1
        person = rows[0]["person"]
        assert sum(row["person"] == person for row in train) == SIZE.repeats
        assert secret.prompt not in everything
        code = secret.response.removesuffix(".")
        assert len(code) == CODE_DIGITS
        assert code.isdigit()


def test_every_person_belongs_to_one_hospital(train):
    homes = defaultdict(set)
    for row in train:
        homes[row["person"]].add(row["hospital"])
    assert all(len(hospitals) == 1 for hospitals in homes.values())
    assert len(homes) == len(HOSPITALS) * (SIZE.people + SIZE.secrets)


def test_candidates_have_the_format_of_secrets(data):
    codes = candidate_codes(2000, RandomStream.seeded(0, "x"))
    assert all(len(code) == len(data.secrets[0].response) for code in codes)
    assert all(code[:-1].isdigit() and code[-1] == "." for code in codes)
    first = Counter(code[0] for code in codes)
    assert set(first) == set("0123456789")
    assert min(first.values()) > 130  # 200 expected; leading zeros are not lost


def test_the_public_corpus_has_the_size_asked_for(data):
    assert SIZE.public_bytes <= data.public.stat().st_size < SIZE.public_bytes + 2000


def test_no_slot_is_left_open(train, public):
    for text in [*public, *(row["prompt"] for row in train)]:
        assert "{" not in text
    assert all(sign for c in lexicon.CONDITIONS for sign in c.signs)
