from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tasks import encode, everything, record, sequence
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from fedllm.config import DataSection, RunConfig, parse
from fedllm.data.bio import spans_of_tags
from fedllm.data.records import RowProblems
from fedllm.data.spans import Span, written
from fedllm.errors import ConfigError, DataError
from fedllm.tasks.scores import means, unit_vectors
from fedllm.tasks.token_classification import TokenClassification

LABELS = ("CITY", "NAME")
TASK = TokenClassification()


def visit(text: str, *spans: tuple[int, int, str], **about):
    return record(text=text, spans=written([Span(*span) for span in spans]), **about)


def tagged(records, tokenizer, max_length=64, labels=LABELS):
    return everything(encode(records, "token_classification", tokenizer, max_length, labels))


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    """As BERT's: lower case, no accents, pieces of words, a token before and one behind."""
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "mull",
        "##er",
        "frau",
        "in",
        "rom",
        "o",
        ",",
        "x",
    ]
    tokenizer = Tokenizer(
        models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )


def test_tokens_have_tags_and_what_the_tokenizer_put_in_has_none(words):
    text = "Frau Müller, Rom"
    batch = tagged(
        [visit(text, (5, 11, "NAME"), (13, 16, "CITY")), visit("x", (0, 1, "CITY"))], words
    )
    tokens = words.convert_ids_to_tokens(sequence(batch, 0))
    assert tokens == ["[CLS]", "frau", "mull", "##er", ",", "rom", "[SEP]"]
    assert batch["labels"].tolist() == [
        [-100, 0, 3, 4, 0, 1, -100, -100],
        [-100, 1, -100, -100, -100, -100, -100, -100],
    ]
    assert batch["labels"].dtype == torch.int64


def test_words_of_a_text_that_look_special_count_as_its_words(words):
    batch = tagged([visit("in [SEP] rom", (9, 12, "CITY"))], words)
    assert batch["labels"][0].tolist() == [-100, 0, 0, 1, -100, -100, -100, -100]


@pytest.mark.parametrize("kind", ["plain", "turns"])
def test_whatever_the_text_tags_find_the_span_again(kind, request):
    """By bytes: a character may be several tokens, and a token several characters."""
    tokenizer = request.getfixturevalue(kind)
    part = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
        str.strip
    )

    @given(part, part, part)
    @settings(max_examples=80)
    def check(before, marked, after):
        text = f"{before} {marked} {after}"
        start = len(before) + 1
        span = (start, start + len(marked), "NAME")
        batch = tagged([visit(text, span)], tokenizer, 4096)
        offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        tags = batch["labels"][0, : len(offsets)].tolist()
        inner = start + len(marked) - len(marked.lstrip()), start + len(marked.rstrip())
        for (first, last), tag in zip(offsets, tags, strict=True):
            touches = first < inner[1] and last > inner[0]
            assert tag in ((3, 4) if touches else (-100,) if first == last else (0,))
        found = spans_of_tags([tag for tag in tags if tag != -100])
        assert len(found) == 1
        assert found[0].label == 1

    check()


def test_what_is_beyond_the_length_is_cut_off(words):
    text = "in " * 20 + "rom"
    batch = tagged([visit(text, (60, 63, "CITY"))], words, 12)
    assert batch["labels"].tolist() == [[-100, *[0] * 10, -100]]
    with pytest.raises(DataError, match="has no tokens to learn from"):
        tagged([visit(text)], words, 2)


def test_a_foreign_label_is_told_by_row_column_and_the_nearest_public_one(words, tmp_path):
    path = tmp_path / "visits.jsonl"
    rows = [("NAME", "x"), ("CITTY", "x"), ("Mrs Private of Rome", "x")]
    lines = [
        {"text": text, "names": [{"start": 0, "end": 1, "label": label}]} for label, text in rows
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    records = TASK.read(str(path), DataSection(train=str(path), spans="names"))
    with pytest.raises(DataError) as caught:
        tagged(records, words)
    said = "a label in field 'names' is not one of the 2 public labels ('CITY', 'NAME')"
    assert caught.value.message.splitlines()[1:] == [
        f"  visits.jsonl row 2: {said}; the nearest is 'CITY'",
        f"  visits.jsonl row 3: {said}",
    ]


def test_at_a_site_a_record_that_cannot_be_learned_from_is_an_empty_unit(words):
    """Also one that became unreadable after the site had started."""
    good = visit("rom", (0, 3, "CITY"))
    bad = [
        visit("rom", (0, 3, "TOWN")),
        visit("\u200b"),
        record(text="rom", spans="{"),
        record(text="rom", spans='[{"start": 0}]'),
    ]
    problems = RowProblems()
    dataset = TASK.encode([bad[0], good, *bad[1:]], words, 16, LABELS, problems)
    assert (len(dataset), dataset.number_of_units, problems.count) == (1, 5, 4)
    assert dataset.units.tolist() == [1]
    assert everything(dataset)["labels"][0, :3].tolist() == [-100, 1, -100]


def test_a_tokenizer_without_offsets_is_refused(words):
    class Slow:
        is_fast = False

    with pytest.raises(ConfigError, match="is a slow one"):
        tagged([visit("rom")], Slow())


def test_labels_are_public_or_listed():
    open_set = DataSection(train="x", test="t.jsonl")
    tests = [visit("a b", (0, 1, "b"), (2, 3, "a")), visit("a", (0, 1, "b")), visit("a")]
    assert TASK.labels(open_set, tests) == ("a", "b")
    assert TASK.labels(DataSection(train="x", labels=("z",)), tests) == ("z",)
    with pytest.raises(DataError, match="token classification needs one"):
        TASK.labels(open_set, [visit("a")])
    with pytest.raises(DataError, match="upper and lower case"):
        TASK.labels(open_set, [visit("a b", (0, 1, "Name"), (2, 3, "NAME"))])


def test_labels_are_counted_and_doubted_without_their_texts():
    rows = [visit("a b", (0, 1, "NAME"), (2, 3, "NAME"))] * 20 + [visit("a", (0, 1, "NAMES"))]
    assert TASK.counted(rows) == "41 spans of 2 labels"
    found = [doubt.found for doubt in TASK.doubts(rows)]
    assert found == [
        "labels that may be one (and their records): 'NAME' (20) and 'NAMES' (1)",
        "labels with one record only: 'NAMES'",
    ]
    odd = [visit("a", (0, 1, f"label {i}")) for i in range(9)]
    assert "data.spans" in TASK.doubts(odd)[0].remedy


class Fixed:
    """A model that answers with the tags that it is given."""

    labels = LABELS

    def __init__(self, tags):
        answers = torch.nn.functional.one_hot(torch.tensor(tags), 5).float()
        self.module = lambda batch: 4.0 * answers


def test_figures_are_those_of_exact_spans():
    true = [[-100, 0, 3, 4, 0, 1], [1, 2, -100, -100, -100, -100], [0, 0, 0, -100, -100, -100]]
    # The name without its second token; the city as it is, and one too many; and what a head says
    # of tokens that do not count.
    said = [[3, 0, 3, 0, 0, 1], [2, 2, 1, 1, 3, 3], [0, 0, 3, 1, 1, 1]]
    batch = {"labels": torch.tensor(true)}
    figures = TASK.figures(TASK.sums(Fixed(said), batch), 3, LABELS)
    assert figures["tokens"] == 10
    assert figures["accuracy"] == pytest.approx(7 / 10)
    assert (figures["right_spans"], figures["predicted_spans"], figures["gold_spans"]) == (
        pytest.approx(2 / 3),
        pytest.approx(4 / 3),
        1.0,
    )
    assert figures["precision"] == pytest.approx(2 / 4)
    assert figures["recall"] == pytest.approx(2 / 3)
    assert figures["f1"] == pytest.approx(4 / 7)
    assert (figures["f1_CITY"], figures["f1_NAME"]) == (1.0, 0.0)
    right, wrong = (-np.log(np.exp(x) / (np.exp(4) + 4)) for x in (4, 0))
    assert figures["loss"] == pytest.approx((7 * right + 3 * wrong) / 10)
    scores = TASK.scores(Fixed(said), batch)
    np.testing.assert_allclose(
        scores[:, 0],
        [(4 * right + wrong) / 5, (right + wrong) / 2, (2 * right + wrong) / 3],
        rtol=1e-6,
    )
    assert scores[:, 1].tolist() == pytest.approx([4 / 5, 1 / 2, 2 / 3])
    assert scores[:, 2:].tolist() == [[1, 2, 2], [1, 1, 1], [0, 1, 0]]


def test_sums_of_sites_say_f1_of_what_was_counted():
    values = np.array([[0.1, 1.0, 1, 2, 2], [0.1, 0.5, 1, 1, 1], [0.1, 0.5, 99, 99, 99]])
    vectors = unit_vectors(TASK.site_scores, values)
    assert vectors.max() <= 1.0
    told = TASK.site_figures(means(TASK.site_scores, vectors.sum(0), 0.0))
    # Of the last unit's 99 spans 32 count.
    assert told["f1"] == pytest.approx(2 * 34 / (35 + 35))
    assert told["recall"] == pytest.approx(34 / 35)
    assert TASK.site_figures({}) == {}


def test_what_compares_label_names_with_texts_is_refused():
    values = {"name": "x", "task": "token_classification", "data": {"train": "t"}}
    for key in ("head_start", "feature_center"):
        with pytest.raises(ConfigError, match=f"{key} = 'label_names' compares texts"):
            parse(RunConfig, {**values, "model": {"path": "m", key: "label_names"}}, "test")
