"""What a kit says of itself: ``kit.json``, and who may read the kit."""

from __future__ import annotations

import shutil

import pytest
from support.kits import make_federation

from fedllm.errors import ConfigError
from fedllm.identity.enrolment import accept, enroll, read_answer, read_request
from fedllm.identity.kit_folder import check_permissions, read_description, write_description
from fedllm.identity.kits import update_roster
from fedllm.identity.provisioning import sign

PLAIN = {
    "role": "site",
    "name": "anne",
    "federation": None,
    "root": None,
    "roster_version": 0,
}


def test_a_kit_that_no_operator_answered_has_seen_no_roster(tmp_path):
    enroll(tmp_path / "kit", "site", "anne")
    found = read_description(tmp_path / "kit")
    assert {key: value for key, value in found.items() if key != "format"} == PLAIN
    assert (tmp_path / "kit" / "kit.json").stat().st_mode & 0o777 == 0o600
    check_permissions(tmp_path / "kit")


@pytest.mark.parametrize(
    "change",
    [
        {"format": "fedllm.kit.v0"},
        {"role": "guest"},
        {"name": None},
        {"name": 3},
        {"federation": 3},
        {"roster_version": True},
        {"roster_version": 1.0},
        {"roster_version": None},
        {"root": "aa" * 31},
        {"root": "aa" * 33},
        {"root": "zz" * 32},
        {"root": 7},
        {"more": 1},
    ],
    ids=str,
)
def test_a_description_of_another_form_is_damaged(tmp_path, change):
    for good in (PLAIN, PLAIN | {"root": "aa" * 32, "federation": "north", "roster_version": 3}):
        write_description(tmp_path, good)
        assert {k: v for k, v in read_description(tmp_path).items() if k != "format"} == good
    write_description(tmp_path, PLAIN | change)
    with pytest.raises(ConfigError) as refused:
        read_description(tmp_path)
    assert refused.value.message == f"{tmp_path / 'kit.json'} is damaged"


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_a_description_without_one_of_its_fields_is_damaged(tmp_path, name):
    write_description(tmp_path, {key: value for key, value in PLAIN.items() if key != name})
    with pytest.raises(ConfigError, match="is damaged"):
        read_description(tmp_path)


@pytest.mark.parametrize("bits", [0o040, 0o020, 0o010, 0o004, 0o002, 0o001])
@pytest.mark.parametrize("name", ["", "keys", "node.key"])
def test_every_bit_for_others_is_one_too_many(tmp_path, name, bits):
    kit = tmp_path / "kit"
    enroll(kit, "site", "anne")
    path = kit / name if name else kit
    path.chmod(0o700 | bits)
    with pytest.raises(ConfigError, match="can be read by other users"):
        check_permissions(kit)


def modes(folder) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): f"{path.stat().st_mode & 0o777:o}"
        for path in sorted(folder.rglob("*"))
    }


def test_every_file_that_is_made_or_installed_is_its_owners_alone(tmp_path):
    """The operator's folder, its kits and the answers; and a kit after a new roster, to the bit."""
    make_federation(tmp_path / "fed")
    kits = tmp_path / "fed" / "kits"
    shutil.move(kits / "anne", tmp_path / "anne")
    enroll(tmp_path / "carl", "site", "carl")
    _, answer = sign(tmp_path / "fed", read_request((tmp_path / "carl/request.json").read_text()))
    accept(tmp_path / "carl", read_answer(answer.read_text()))
    update_roster(tmp_path / "anne", (tmp_path / "fed" / "roster.json").read_text())
    for kit in (tmp_path / "anne", tmp_path / "carl", *kits.iterdir()):
        found = modes(kit)
        assert {name: mode for name, mode in found.items() if not (kit / name).is_dir()} == (
            dict.fromkeys((name for name in found if not (kit / name).is_dir()), "600")
        ), kit
        assert found["keys"] == "700"
        assert f"{kit.stat().st_mode & 0o777:o}" == "700"
    assert (tmp_path / "fed" / "federation.json").stat().st_mode & 0o777 == 0o600
    secret = {name: mode for name, mode in modes(tmp_path / "fed").items() if "key" in name}
    assert set(secret.values()) <= {"600", "700"}
