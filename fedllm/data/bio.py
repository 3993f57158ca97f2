"""BIO tags of tokens: outside of every span, at the beginning of one, or inside it.

Tag 0 is outside; 1 + 2 k begins a span of label k, 2 + 2 k goes on with it (Ramshaw & Marcus 1995,
"Text chunking using transformation-based learning", in the form called IOB2).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fedllm.data.spans import Span

TAGGING = "BIO"
OUTSIDE = 0


class TaggedSpan(NamedTuple):
    """Tokens ``first`` to ``last``, both included, and the number of their label."""

    first: int
    last: int
    label: int


def number_of_tags(labels: int) -> int:
    """Return how many tags there are for so many labels."""
    return 1 + 2 * labels


def owners(text: str, spans: Sequence[Span]) -> list[int]:
    """Return for each character of a text which span it belongs to, -1 for none.

    White space at the edges of a span belongs to none: many tokenizers put the space before a
    word into its token, and a span that ends in a space would take the next word in.
    """
    found = [-1] * len(text)
    for place, span in enumerate(spans):
        part = text[span.start : span.end]
        first = span.start + len(part) - len(part.lstrip())
        size = len(part.strip())
        found[first : first + size] = [place] * size
    return found


def tags_of_tokens(
    owner: Sequence[int],
    labels: Sequence[int],
    offsets: Sequence[tuple[int, int]],
    special: Sequence[int],
    ignored: int,
) -> Iterator[int]:
    """Yield the tag of each token.

    A token belongs to the span that has most of its characters, be it one; the first of those that
    have as many. To hide a letter too much is better than to show a part of a name.

    Parameters
    ----------
    owner : sequence of int
        Of each character, as `owners` says.
    labels : sequence of int
        Number of each span's label.
    offsets : sequence of (int, int)
        First character of each token, and the first one behind it.
    special : sequence of int
        1 for each token that the tokenizer put in.
    ignored : int
        Tag of those, and of tokens without characters.
    """
    before = -1
    for (start, end), put_in in zip(offsets, special, strict=True):
        if put_in or start >= end:
            yield ignored
            continue
        held = Counter(place for place in owner[start:end] if place >= 0)
        # The first among equals, as a counter keeps the order in which it met them.
        place = held.most_common(1)[0][0] if held else -1
        if place < 0:
            yield OUTSIDE
        else:
            yield 1 + 2 * labels[place] + (place == before)
        before = place


def spans_of_tags(tags: Sequence[int]) -> list[TaggedSpan]:
    """Return the spans that a sequence of tags says, from the left.

    Whatever the tags are, they say something: a tag that goes on with a span which is not there
    begins one, as in the evaluation of CoNLL-2000 and CoNLL-2003.

    Parameters
    ----------
    tags : sequence of int
        Of the tokens that count alone.
    """
    found: list[TaggedSpan] = []
    open_label = -1
    for place, tag in enumerate(tags):
        label = (tag - 1) // 2
        if tag == OUTSIDE:
            open_label = -1
        elif tag % 2 == 0 and label == open_label:
            found[-1] = found[-1]._replace(last=place)
        else:
            found.append(TaggedSpan(place, place, label))
            open_label = label
    return found
