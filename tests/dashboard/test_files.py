"""Files that grow while they are read."""

from __future__ import annotations

from fedllm.dashboard.files import Kept, Lines


def test_each_line_comes_once_and_only_when_it_has_its_end(tmp_path):
    path = tmp_path / "x.jsonl"
    lines = Lines(path)
    assert lines.new() == (False, [])
    path.write_bytes(b"one\ntw")
    assert lines.new() == (False, [b"one"])
    assert lines.new() == (False, [])
    with path.open("ab") as stream:
        stream.write(b"o\nthree\n")
    assert lines.new() == (False, [b"two", b"three"])


def test_a_file_that_was_exchanged_or_cut_is_read_anew(tmp_path):
    path, other = tmp_path / "x.jsonl", tmp_path / "y"
    lines = Lines(path)
    path.write_bytes(b"one\ntwo\n")
    lines.new()
    other.write_bytes(b"one\ntwo\nthree\n")
    other.rename(path)
    assert lines.new() == (True, [b"one", b"two", b"three"])
    with path.open("r+b") as stream:
        stream.truncate(4)
    assert lines.new() == (True, [b"one"])
    path.unlink()
    assert lines.new() == (True, [])
    assert lines.new() == (False, [])
    path.write_bytes(b"four\n")
    assert lines.new() == (False, [b"four"])


def test_what_is_made_of_a_file_is_made_once_for_each_state_of_it(tmp_path):
    path, made = tmp_path / "x", list[str]()
    kept = Kept(path, lambda place: made.append(place.read_text()) or made[-1])
    assert not kept.look()
    assert kept.value is None
    path.write_text("a")
    assert [kept.look(), kept.look()] == [True, False]
    path.write_text("ab")
    assert kept.look()
    assert kept.value == "ab"
    assert made == ["a", "ab"]
    path.unlink()
    assert kept.look()
    assert kept.value is None
