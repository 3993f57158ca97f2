"""The training records of a simulation: which columns are read, and for whom."""

from __future__ import annotations

import json

import pytest

from fedllm.config import RunConfig, parse
from fedllm.errors import ConfigError, DataError
from fedllm_client.dividing import divide


def asked(path, evaluation=None, **data):
    values = {
        "name": "x",
        "task": "classification",
        "model": {"path": "m"},
        "data": {"train": str(path), "sites": 2, **data},
        "rounds": {"min_sites": 2},
        "evaluation": {"every": 1, **(evaluation or {})},
    }
    return parse(RunConfig, values, "test")


def test_groups_are_read_where_sites_tell_of_them_and_nowhere_else(tmp_path):
    path, groups = tmp_path / "a.jsonl", {"parts": "group", "groups": ["north"]}
    rows = [{"text": str(i), "label": "l", "where": ("north", "south")[i % 2]} for i in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def found(config):
        return {record.group for own in divide(config).values() for record in own}

    assert found(asked(path, groups, group="where")) == {"north", "south"}
    # Without that it is a column of the public test file, which these records may lack.
    assert found(asked(path, group="elsewhere")) == {None}
    assert found(asked(path, {"parts": "label"}, group="elsewhere")) == {None}
    with pytest.raises(DataError, match="no column 'elsewhere'"):
        divide(asked(path, groups, group="elsewhere"))
    with pytest.raises(ConfigError, match="needs the column") as refused:
        divide(asked(path, groups))
    assert "data.group" in refused.value.remedy
