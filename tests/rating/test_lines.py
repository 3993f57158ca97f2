"""Files that grow by whole lines, for their owner alone."""

from __future__ import annotations

import os

import pytest
from support.rating import rating

from fedllm.errors import ConfigError, FedllmError, StorageError
from fedllm.rating.lines import PrivateLines
from fedllm.rating.store import Rating

SECRET = "Zebediah"
SAID = rating("ann", (1, 2))


@pytest.fixture
def own(tmp_path):
    found = PrivateLines(tmp_path / "deep" / "a.jsonl")
    found.prepare()
    return found


def test_lines_come_back_and_are_for_the_owner(own):
    other = rating("bob", (2, 1), prompt="\u2028 Größe \x00")
    own.append(SAID)
    own.append(other)
    assert own.read(Rating) == [SAID, other]
    assert own.path.stat().st_mode & 0o777 == 0o600
    own.path.chmod(0o644)
    own.append(SAID)
    assert own.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("left", [1, 40, -1])
def test_what_a_crash_cut_off_is_left_out_and_then_taken_off(left, own):
    own.append(SAID)
    whole = own.path.read_bytes()
    own.path.write_bytes(whole + whole[:-1][:left])
    assert own.read(Rating) == [SAID]
    own.append(SAID)
    assert own.read(Rating) == [SAID, SAID]
    assert own.path.read_bytes() == 2 * whole


def test_a_last_line_that_lacks_its_end_alone_counts(own):
    own.append(SAID)
    own.path.write_bytes(own.path.read_bytes()[:-1])
    own.append(SAID)
    assert own.read(Rating) == [SAID, SAID]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (f"{SECRET}", "is no JSON object"),
        ("[1]", "is no JSON object"),
        ('{"rater": ', "is no JSON object"),
        (f'{{"{SECRET}": "{SECRET}"}}', "another name"),
        (SAID.model_dump_json().replace('"ranks":[1,2]', '"ranks":[1,3]'), "the line"),
        (SAID.model_dump_json().replace('"ranks":[1,2]', f'"ranks":["{SECRET}"]'), "ranks"),
        (SAID.model_dump_json().replace('"rater":"ann"', '"rater":""'), "rater"),
        (SAID.model_dump_json().replace("rating.v1", "rating.v2"), "format"),
    ],
)
def test_a_damaged_line_is_named_and_not_quoted(line, words, own):
    own.append(SAID)
    own.path.write_text(own.path.read_text() + line + "\n" + SAID.model_dump_json() + "\n")
    with pytest.raises(ConfigError, match="line 2") as error:
        own.read(Rating)
    assert words in error.value.message
    assert SECRET not in str(error.value)


def test_prompts_in_the_place_of_ratings_are_told_apart_from_a_damaged_line(own):
    own.path.write_text('{"prompt": "What now?"}\n')
    with pytest.raises(ConfigError) as error:
        own.read(Rating)
    assert "that fedllm rate wrote" in error.value.remedy
    own.path.write_text(SAID.model_dump_json() + '\n{"prompt": "What now?"}\n')
    with pytest.raises(ConfigError) as error:
        own.read(Rating)
    assert "that fedllm rate wrote" not in error.value.remedy


def test_a_file_of_something_else_is_not_touched(tmp_path):
    path = tmp_path / "letter.txt"
    path.write_text("a letter without an end")
    path.chmod(0o644)
    own = PrivateLines(path)
    own.prepare()
    with pytest.raises(ConfigError, match="no JSON object"):
        own.read(Rating)
    assert path.read_text() == "a letter without an end"
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_link_is_not_followed(own, tmp_path):
    target = tmp_path / "target"
    target.write_text("before")
    link = tmp_path / "link.jsonl"
    link.symlink_to(target)
    with pytest.raises(ConfigError, match="is a link"):
        PrivateLines(link).prepare()
    os.replace(link, own.path)
    with pytest.raises(ConfigError, match="is a link"):
        own.append(SAID)
    (tmp_path / "dangling").symlink_to(tmp_path / "made")
    with pytest.raises(ConfigError, match="is a link"):
        PrivateLines(tmp_path / "dangling").prepare()
    assert target.read_text() == "before"
    assert not (tmp_path / "made").exists()


def test_what_cannot_be_a_file_is_told(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ConfigError) as error:
            PrivateLines(path).prepare()
        assert error.value.remedy
    with pytest.raises(ConfigError, match="cannot be read"):
        PrivateLines(tmp_path / "none").read(Rating)


def test_another_users_file_is_refused(own, monkeypatch):
    own.append(SAID)
    before = own.path.read_bytes()
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    for use in (own.prepare, lambda: own.append(SAID)):
        with pytest.raises(ConfigError, match="belongs to another user") as error:
            use()
        assert "another path" in error.value.remedy
    assert own.path.read_bytes() == before


def test_what_the_system_forbids_is_told(own, monkeypatch):
    own.append(SAID)

    def forbidden(*arguments):
        raise PermissionError(1, "Operation not permitted")

    for name in ("fchmod", "open"):
        with monkeypatch.context() as patched, pytest.raises(FedllmError) as error:
            patched.setattr(os, name, forbidden)
            own.append(SAID)
        assert "not permitted" in str(error.value)
        assert own.read(Rating) == [SAID]


def test_what_is_written_goes_where_it_was_looked_at(own, tmp_path, monkeypatch):
    """A link that comes between looking and writing leads nowhere."""
    own.append(SAID)
    target, kept, right = tmp_path / "target", tmp_path / "kept", os.fchmod
    target.write_text("")

    def swapped(descriptor, mode):
        right(descriptor, mode)
        own.path.rename(kept)
        own.path.symlink_to(target)

    monkeypatch.setattr(os, "fchmod", swapped)
    own.append(SAID)
    assert target.read_text() == ""
    assert PrivateLines(kept).read(Rating) == [SAID, SAID]


def test_a_full_disk_leaves_no_half_line(own, monkeypatch):
    own.append(SAID)
    before = own.path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        own.append(SAID)
    assert own.path.read_bytes() == before
