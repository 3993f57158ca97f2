"""The coordinator's folder of releases, as nodes are told of it."""

from __future__ import annotations

import json
import os

from fedllm.federation.protocol.releases import MAX_LIST_BYTES, MAX_LISTED
from fedllm.federation.transport.releases import Shelf


def shelf(folder, texts):
    for number, text in enumerate(texts):
        path = folder / f"{number:08x}" / "release.json"
        path.parent.mkdir()
        path.write_text(text)
        os.utime(path, ns=(number, number))
    return Shelf(folder, "release.json", "adapter")


def test_the_newest_come_first_and_no_more_than_a_node_takes(tmp_path):
    found = json.loads(shelf(tmp_path, map(str, range(MAX_LISTED + 10))).listed())
    assert found == list(range(MAX_LISTED + 9, 9, -1))


def test_a_list_is_never_longer_than_a_node_reads(tmp_path):
    long = json.dumps("x" * (MAX_LIST_BYTES // 3))
    content = shelf(tmp_path, [long] * 4).listed()
    assert len(content) <= MAX_LIST_BYTES
    assert len(json.loads(content)) == 2


def test_what_is_no_release_is_passed_over(tmp_path):
    (tmp_path / "stray").write_text("x")
    (tmp_path / "0" / "release.json").mkdir(parents=True)
    assert Shelf(tmp_path, "release.json", "adapter").listed() == b"[]"
    assert Shelf(tmp_path / "none", "release.json", "adapter").listed() == b"[]"
