"""Whoever can write a disk, and has not the key: every change of a sealed file is refused."""

from __future__ import annotations

import base64
import string
from io import BytesIO

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedllm.at_rest.log import SealedLog, read_log
from fedllm.at_rest.stream import (
    CHUNK_BYTES,
    HEADER_BYTES,
    About,
    SealedError,
    is_sealed_with,
    seal,
    seal_bytes,
    unseal,
    unseal_bytes,
)

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
ABOUT = About("own layer", "own/3af0.sealed")
SEALED_CHUNK = CHUNK_BYTES + 16
# Ends of chunks are where a mistake would lie.
sizes = st.one_of(
    st.integers(0, 300),
    st.sampled_from([0, 1, 2, 3]).flatmap(
        lambda n: st.integers(-2, 2).map(lambda d: max(0, n * CHUNK_BYTES + d))
    ),
)


def content_of(size: int) -> bytes:
    return bytes(i * 31 % 251 for i in range(256)) * (size // 256) + bytes(size % 256)


def chunks_of(sealed: bytes) -> list[bytes]:
    body = sealed[HEADER_BYTES:]
    return [body[i : i + SEALED_CHUNK] for i in range(0, len(body), SEALED_CHUNK)]


def refused(sealed: bytes, about: About = ABOUT, keys: tuple[bytes, ...] = (KEY,)) -> None:
    with pytest.raises(SealedError, match="does not open"):
        unseal_bytes(sealed, keys, about)


@given(sizes, st.lists(st.integers(1, 3 * CHUNK_BYTES), max_size=6))
@settings(max_examples=60)
def test_what_was_sealed_comes_back_however_it_was_handed_over(size, cuts):
    content = content_of(size)
    parts, start = [], 0
    for cut in cuts:
        parts.append(content[start : start + cut])
        start += cut
    parts.append(content[start:])
    sealed = b"".join(seal(parts, KEY, ABOUT))
    assert unseal_bytes(sealed, [OTHER, KEY], ABOUT) == content
    assert len(sealed) == HEADER_BYTES + size + 16 * max(1, -(-size // CHUNK_BYTES))


@given(sizes, st.data())
@settings(max_examples=150)
def test_every_flipped_bit_is_refused(size, data):
    sealed = bytearray(seal_bytes(content_of(size), KEY, ABOUT))
    place = data.draw(st.integers(0, len(sealed) - 1))
    sealed[place] ^= 1 << data.draw(st.integers(0, 7))
    refused(bytes(sealed))


@given(sizes, st.data())
@settings(max_examples=150)
def test_every_cut_is_refused(size, data):
    sealed = seal_bytes(content_of(size), KEY, ABOUT)
    refused(sealed[: data.draw(st.integers(0, len(sealed) - 1))])


@pytest.mark.parametrize("size", [CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES])
def test_a_cut_between_chunks_is_refused(size):
    sealed = seal_bytes(content_of(size), KEY, ABOUT)
    for chunks in range(len(chunks_of(sealed))):
        refused(sealed[: HEADER_BYTES + chunks * SEALED_CHUNK])


@given(sizes, st.binary(min_size=1, max_size=40))
@settings(max_examples=60)
def test_whatever_is_added_is_refused(size, more):
    sealed = seal_bytes(content_of(size), KEY, ABOUT)
    refused(sealed + more)
    refused(sealed + chunks_of(sealed)[-1])
    refused(more + sealed)


@given(st.permutations(range(4)))
@example([0, 1, 3, 2])
def test_chunks_that_are_swapped_are_refused(order):
    sealed = seal_bytes(content_of(4 * CHUNK_BYTES), KEY, ABOUT)
    mixed = sealed[:HEADER_BYTES] + b"".join(chunks_of(sealed)[i] for i in order)
    if list(order) == [0, 1, 2, 3]:
        assert unseal_bytes(mixed, [KEY], ABOUT)
    else:
        refused(mixed)


@given(st.integers(0, 3), st.integers(0, 3))
def test_chunks_that_are_repeated_or_left_out_are_refused(one, other):
    sealed = seal_bytes(content_of(4 * CHUNK_BYTES), KEY, ABOUT)
    chunks = chunks_of(sealed)
    refused(sealed[:HEADER_BYTES] + b"".join(chunks[:one] + chunks[one + 1 :]))
    refused(sealed[:HEADER_BYTES] + b"".join([*chunks[:other], chunks[one], *chunks[other:]]))


@given(st.integers(0, 2))
def test_a_chunk_of_another_file_is_refused(place):
    """Of the same content, key, purpose and name: an earlier version of the same file."""
    content = content_of(3 * CHUNK_BYTES)
    now, before = (chunks_of(seal_bytes(content, KEY, ABOUT)) for _ in range(2))
    sealed = seal_bytes(content, KEY, ABOUT)
    chunks = chunks_of(sealed)
    chunks[place] = before[place]
    refused(sealed[:HEADER_BYTES] + b"".join(chunks))
    assert now != before


@given(st.text(max_size=20), st.text(max_size=20))
def test_a_renamed_file_and_one_of_another_purpose_are_refused(purpose, name):
    sealed = seal_bytes(b"records", KEY, ABOUT)
    if (purpose, name) != (ABOUT.purpose, ABOUT.name):
        refused(sealed, About(purpose, name))
    # Nor can a name run over into the purpose.
    refused(sealed, About(ABOUT.purpose + ABOUT.name[0], ABOUT.name[1:]))
    refused(sealed, About("", ABOUT.purpose + ABOUT.name))


@given(st.binary(min_size=32, max_size=32))
def test_another_key_is_refused_in_the_same_words_as_damage(key):
    sealed = seal_bytes(b"records", KEY, ABOUT)
    if key == KEY:
        return
    said = set()
    for text, keys in ((sealed, [key]), (sealed[:-1], [KEY]), (b"", [KEY]), (sealed, [])):
        with pytest.raises(SealedError) as caught:
            unseal_bytes(text, keys, ABOUT)
        said.add(str(caught.value))
    assert len(said) == 1
    assert not is_sealed_with(BytesIO(sealed), key, ABOUT)
    assert is_sealed_with(BytesIO(sealed), KEY, ABOUT)


def test_a_file_opens_under_one_key_alone_however_it_was_made():
    """AES-GCM by itself does not promise that: the header's commitment does."""
    sealed = bytearray(seal_bytes(b"x" * 100, KEY, ABOUT))
    other = seal_bytes(b"x" * 100, OTHER, ABOUT)
    start = HEADER_BYTES - 32
    for header in (sealed[:start] + other[start:HEADER_BYTES], other[:HEADER_BYTES]):
        refused(bytes(header) + bytes(sealed[HEADER_BYTES:]), keys=(KEY, OTHER))


def test_nothing_of_a_content_shows_and_no_two_are_alike():
    content = b"patient 4711 has diabetes" * 100
    one, other = seal_bytes(content, KEY, ABOUT), seal_bytes(content, KEY, ABOUT)
    assert b"diabetes" not in one
    assert one[HEADER_BYTES:] != other[HEADER_BYTES:]


def test_a_long_file_is_read_in_pieces_and_the_end_decides():
    sealed = seal_bytes(content_of(3 * CHUNK_BYTES + 5), KEY, ABOUT)
    given_out = []
    with pytest.raises(SealedError):
        for chunk in unseal(BytesIO(sealed[:-1]), [KEY], ABOUT):
            given_out.append(chunk)
    assert [len(chunk) for chunk in given_out] == [CHUNK_BYTES] * 3


# --- the log ---------------------------------------------------------------------------------

LOG = About("site log", "rounds.sealed")


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "rounds.sealed"
    made = SealedLog(path, KEY, LOG)
    for number in range(6):
        made.append(f"loss of round {number}")
    return path


def opened(path, keys=(KEY,)):
    return list(read_log(path, keys, LOG))


def test_a_log_is_read_line_by_line(log):
    assert opened(log) == [f"loss of round {number}" for number in range(6)]
    # By a later process too.
    SealedLog(log, KEY, LOG).append("more")
    assert opened(log)[-2:] == ["loss of round 5", "more"]
    assert log.stat().st_mode & 0o777 == 0o600


@given(data=st.data())
@settings(max_examples=80)
def test_every_change_of_a_log_is_refused_but_a_cut_at_its_end(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("log") / "rounds.sealed"
    made = SealedLog(path, KEY, LOG)
    for number in range(4):
        made.append(f"loss of round {number}")
    lines = path.read_text().splitlines()
    way = data.draw(st.sampled_from(["flip", "swap", "repeat", "leave out", "another's"]))
    one, other = data.draw(st.permutations(range(4)))[:2]
    if way == "flip":
        place = data.draw(st.integers(0, len(lines[one]) - 1))
        letter = data.draw(st.sampled_from("ABCDabcd0123+/=*"))
        if lines[one][place] == letter:
            return
        lines[one] = lines[one][:place] + letter + lines[one][place + 1 :]
    elif way == "swap":
        lines[one], lines[other] = lines[other], lines[one]
    elif way == "repeat":
        lines.insert(other, lines[one])
    elif way == "leave out":
        del lines[min(one, 2)]
    else:
        elsewhere = path.with_name("x")
        SealedLog(elsewhere, KEY, LOG).append("another")
        lines[one] = elsewhere.read_text().strip()
        if one == 0:
            # A first line of its own; the second does not follow it.
            with pytest.raises(SealedError, match="line 2 of"):
                path.write_text("\n".join(lines) + "\n")
                opened(path)
            return
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(SealedError, match=r"line \d of rounds.sealed does not open"):
        opened(path)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_another_spelling_of_the_last_line_is_refused(tmp_path, length):
    """Letters of base64 that fill up: they hold bits that nobody reads."""
    path = tmp_path / "rounds.sealed"
    SealedLog(path, KEY, LOG).append("x" * length)
    line = path.read_text().strip()
    place = len(line.rstrip("=")) - 1
    alphabet = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"
    letter = alphabet[alphabet.index(line[place]) ^ 1]
    changed = line[:place] + letter + line[place + 1 :]
    same = base64.b64decode(changed) == base64.b64decode(line)
    assert same == line.endswith("=")
    path.write_text(changed + "\n")
    with pytest.raises(SealedError):
        opened(path)


def test_a_line_that_a_crash_cut_off_is_no_damage(log):
    with log.open("a") as stream:
        stream.write(base64.b64encode(b"half").decode())
    assert len(opened(log)) == 6
    SealedLog(log, KEY, LOG).append("after the crash")
    assert opened(log)[-1] == "after the crash"


def test_a_log_that_was_set_back_gives_no_two_texts_under_one_nonce(log):
    """The lines that follow are sealed afresh: their salts differ, so nothing is repeated."""
    before = log.read_bytes()
    SealedLog(log, KEY, LOG).append("one")
    one = log.read_bytes()[len(before) :]
    log.write_bytes(before)
    SealedLog(log, KEY, LOG).append("two")
    two = log.read_bytes()[len(before) :]
    assert base64.b64decode(one)[:HEADER_BYTES] != base64.b64decode(two)[:HEADER_BYTES]


def test_another_name_or_key_opens_no_log(log):
    with pytest.raises(SealedError):
        opened(log, (OTHER,))
    with pytest.raises(SealedError):
        list(read_log(log, [KEY], About("site log", "other.sealed")))
