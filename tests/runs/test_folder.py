"""Which run a folder holds, and who may work in it."""

from __future__ import annotations

import json
import os

import pytest
from support.run_folder import run_config

from fedllm.config import to_toml
from fedllm.errors import ConfigError
from fedllm.federation.protocol.wire import digest
from fedllm.runs.folder import (
    check_folder,
    config_digest,
    is_same_run,
    locked,
    require_same_run,
    write_config,
)

HERE = {"train": "/here/train.csv", "test": "/here/test.csv"}
THERE = {"train": "/there/train.csv", "test": "/there/test.csv"}


def place(data, model="/here/model", **sections):
    return run_config(data=data, model={"path": model}, **sections)


def test_places_are_no_part_of_a_run_and_everything_else_is():
    one = config_digest(place(HERE))
    assert config_digest(place(THERE, "/elsewhere/base")) == one
    for other in (
        place({**HERE, "train": "/here/other.csv"}),
        place({"train": "/here/train.csv"}),
        place(HERE, privacy={"epsilon": 1.0}),
        place(HERE, rounds={"count": 6}),
    ):
        assert config_digest(other) != one
    assert config_digest(place(HERE, engine={"threads": 3})) == one


URL = "postgresql+psycopg://nurse:pa55@host-a:5432/clinic?sslmode=require"


@pytest.mark.parametrize(
    ("train", "same", "others"),
    [
        (
            URL,
            [URL.replace("pa55", "n/w%3F#"), URL.replace("nurse:pa55@", "")],
            [
                URL.replace("host-a", "host-b"),
                URL.replace("clinic", "other"),
                URL.replace("5432", "5433"),
                URL.replace("require", "/require"),
            ],
        ),
        (
            "/here/2024/*.jsonl",
            [],
            ["/here/2025/*.jsonl", "/there/2024/*.jsonl", "/here/2024/?.jsonl"],
        ),
        ("/a/[ab]/x.csv", [], ["/a/[cd]/x.csv"]),
        ("sqlite:////here/one.db", [], ["sqlite:////here/two.db", "sqlite:////there/one.db"]),
        ("/here/x.csv", ["/there/x.csv", "x.csv"], ["/here/y.csv"]),
    ],
)
def test_a_database_or_a_pattern_is_known_by_all_of_it(train, same, others):
    more = {"query": "SELECT 1"} if "://" in train else {}
    one = config_digest(place({"train": train, **more}))
    assert all(config_digest(place({"train": other, **more})) == one for other in same)
    assert all(config_digest(place({"train": other, **more})) != one for other in others)


def test_a_run_of_an_earlier_version_goes_on_where_its_own_configuration_says(tmp_path):
    """Its digest counts the last part of a pattern or a URL alone."""
    values = {"train": "/here/*.csv"}
    begun = place(values)
    before = begun.model_dump(mode="json", exclude={"engine"}, exclude_defaults=True)
    del before["model"]["path"]
    before["data"]["train"] = "*.csv"
    write_config(tmp_path, begun)
    assert is_same_run(digest(before), begun, tmp_path)
    assert not is_same_run(digest(before), place({"train": "/there/*.csv"}), tmp_path)
    assert not is_same_run(config_digest(begun), place({"train": "/there/*.csv"}), tmp_path)


def test_a_checkpoint_of_an_earlier_version_is_known_in_another_place(tmp_path):
    begun = place(HERE)
    before = begun.model_dump(mode="json", exclude={"engine"}, exclude_defaults=True)
    old = digest(before)
    write_config(tmp_path, begun)
    assert is_same_run(old, begun, tmp_path)
    assert is_same_run(old, place(THERE), tmp_path)
    assert not is_same_run(old, place(THERE, privacy={"epsilon": 1.0}), tmp_path)
    (tmp_path / "run.toml").write_text(to_toml(place(HERE, privacy={"epsilon": 1.0})))
    assert not is_same_run(old, place(THERE, privacy={"epsilon": 1.0}), tmp_path)


def test_a_changed_run_toml_is_not_the_file_to_resume_with(tmp_path):
    begun, changed = place(HERE), place(HERE, privacy={"epsilon": 1.0})
    digest_ = config_digest(begun)
    write_config(tmp_path, begun)
    with pytest.raises(ConfigError, match=r"given now: privacy\.epsilon") as other:
        require_same_run(digest_, changed, tmp_path)
    assert other.value.remedy.startswith(f"resume with {tmp_path / 'run.toml'}")
    write_config(tmp_path, changed)
    for given in (changed, place(HERE, privacy={"epsilon": 2.0})):
        with pytest.raises(ConfigError, match=r"run\.toml was changed after the run") as refused:
            require_same_run(digest_, given, tmp_path)
        assert not refused.value.remedy.startswith("resume with " + str(tmp_path))
    # What it was begun with goes on, and is written over it.
    require_same_run(digest_, place(THERE), tmp_path)
    (tmp_path / "summary.json").write_text(json.dumps({"privacy": {"promised": 8.0}}))
    with pytest.raises(ConfigError, match=r"privacy\.epsilon is 1\.0, privacy\.promised of summ"):
        require_same_run(digest_, changed, tmp_path)


def test_a_folder_that_cannot_be_used_is_refused_and_stays_as_it_was(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match="could not write"), locked(path):
            pass
    with pytest.raises(ConfigError, match="it is a file"):
        check_folder(tmp_path / "file", resume=False)
    with pytest.raises(ConfigError, match="no run to resume"):
        check_folder(tmp_path / "new", resume=True)
    with pytest.raises(ConfigError, match="not empty"):
        check_folder(tmp_path, resume=False)
    check_folder(tmp_path / "new", resume=False)
    assert os.listdir(tmp_path) == ["file"]


def test_what_a_crash_before_the_first_file_leaves_is_in_nobodys_way(tmp_path):
    for name in (".lock", ".run.toml.x1y2", ".writable.abc"):
        (tmp_path / name).touch()
    check_folder(tmp_path, resume=False)
    (tmp_path / ".thesis").touch()
    with pytest.raises(ConfigError, match="not empty"):
        check_folder(tmp_path, resume=False)
