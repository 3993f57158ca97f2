"""A released model reaches a site over TLS: what it gets, what it is told, how it goes on."""

from __future__ import annotations

import json
import os
import shutil
from datetime import UTC, datetime

import pytest
from support.releases import NAME, RUN_ID, Releasing
from typer.testing import CliRunner

from fedllm.cli import app
from fedllm.errors import ConfigError, FedllmError, PeerError
from fedllm.federation.protocol import releases as protocol
from fedllm.runs import names
from fedllm.runs.record import read_config, require_run
from fedllm.runs.start import find_start
from fedllm.runs.summary import read_summary
from fedllm_client import fetching
from fedllm_client.releases import kept_path, offered_releases
from fedllm_server.releasing import release_run, releases_folder, withdraw


@pytest.fixture(scope="module")
def releasing(tiny_checkpoint, tmp_path_factory):
    made = Releasing(tmp_path_factory.mktemp("releasing"), tiny_checkpoint("bert"))
    yield made
    made.close()


@pytest.fixture
def place(releasing):
    releasing.reset()
    return releasing


def test_a_site_fetches_the_model_of_its_run(place):
    place.train()
    released = place.release()
    seen = []
    kit = place.site()
    (offer,), wrong = offered_releases(kit)
    assert (offer.took_part, wrong) == (True, 0)
    out = place.folder / "models" / "one"
    found = fetching.fetch(kit, place.base, offer, out, lambda *told: seen.append(told))
    assert (found.release, found.took_part) == (released, True)
    assert found.new_bytes == released.size == seen[-1][0] == seen[-1][1]
    adapter = place.kit.folder / "state" / "runs" / NAME / "adapter"
    for path in adapter.iterdir():
        assert (out / "adapter" / path.name).read_bytes() == path.read_bytes()
    # A finished run's folder for every other command, with this site's own base model.
    require_run(out)
    assert read_config(out).model.path == str(place.checkpoint)
    assert read_summary(out).model_dump()["release"] == released.digest
    assert find_start(str(out)).about["run_id"] == RUN_ID
    assert out.stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in out.iterdir()) == sorted(
        (names.ADAPTER, names.RELEASE, names.RUN_TOML, names.SUMMARY)
    )
    assert [path.name for path in out.parent.iterdir()] == ["one"]


def test_a_release_tells_nothing_of_the_coordinators_machine(place):
    text = release_text(place)
    for private in ("/srv/secret", "Northgate", str(place.folder), "torch"):
        assert private not in text


def release_text(place) -> str:
    place.release()
    return (releases_folder(place.kit.folder) / RUN_ID / names.RELEASE).read_text()


def test_a_site_that_took_no_part_is_told_so(place):
    place.train(run="aaaaaaaaaaaaaaaa")
    place.release()
    assert not place.fetch().took_part
    assert not place.fetch("bob").took_part


def test_another_configuration_than_the_sites_own_is_refused(place):
    place.train(config="another")
    place.release()
    with pytest.raises(PeerError, match="another configuration than the one under which"):
        place.fetch()
    assert not (place.folder / "models").exists()


def test_a_broken_transfer_goes_on_where_it_was(place, monkeypatch):
    monkeypatch.setattr(fetching, "PIECE_BYTES", 1000)
    monkeypatch.setattr(fetching, "_wait_s", lambda failures: 0.0)
    monkeypatch.setattr("fedllm.federation.transport.releases.PIECE_BYTES", 1000)
    size = place.release().size
    assert size > 5000

    def broken(body, content):
        if json.loads(body)["offset"] == 2000:
            raise OSError("the disk is gone")
        return content

    def cut(body, content):
        return content[:-1] if json.loads(body)["offset"] == 2000 else content

    place.shelf.change_piece = cut
    with pytest.raises(FedllmError, match=r"cut short.*bytes are here") as caught:
        place.fetch()
    assert "goes on from there" in caught.value.remedy
    place.shelf.change_piece = broken
    with pytest.raises(PeerError, match="does not have"):
        place.fetch()
    place.shelf.change_piece = lambda body, content: content
    place.shelf.asked.clear()
    found = place.fetch()
    assert 0 < found.new_bytes < size
    asked = [
        one["offset"] for one in place.shelf.asked if one["file"] == "adapter_model.safetensors"
    ]
    assert min(asked) == 2000


def test_a_connection_that_breaks_for_a_moment_is_tried_again(place, monkeypatch):
    place.release()
    waits, right, failing = [], fetching.ask, iter([True, True, False])
    monkeypatch.setattr(fetching, "_wait_s", lambda failures: waits.append(failures) or 0.0)

    def ask(*arguments):
        if next(failing, False):
            raise ConnectionResetError
        return right(*arguments)

    monkeypatch.setattr(fetching, "ask", ask)
    assert place.fetch().new_bytes
    assert waits == [0, 1]


def test_what_is_here_is_checked_and_not_fetched_again(place):
    place.release()
    out = place.fetch().folder
    place.shelf.asked.clear()
    assert place.fetch().new_bytes == 0
    assert not place.shelf.asked
    path = out / "adapter" / "shared_model.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(ConfigError, match="not what was fetched"):
        place.fetch()


def test_a_folder_that_holds_something_else_is_left_alone(place):
    place.release()
    out = place.folder / "models" / "mine"
    out.mkdir(parents=True)
    (out / "thesis.md").write_text("x")
    with pytest.raises(ConfigError, match="in use for something else"):
        place.fetch(out=out)
    assert [path.name for path in out.iterdir()] == ["thesis.md"]
    (out / "thesis.md").unlink()
    assert place.fetch(out=out).new_bytes


def test_another_base_model_is_told_before_anything_is_fetched(place, tiny_checkpoint):
    place.release()
    place.base = place.base.model_copy(update={"path": str(tiny_checkpoint("llama"))})
    with pytest.raises(ConfigError, match="belongs on the base model"):
        place.fetch()
    assert not place.shelf.asked


def test_a_full_disk_is_told_before_anything_is_fetched(place, monkeypatch):
    place.release()
    usage = shutil.disk_usage(place.folder)
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(FedllmError, match="1,000 left"):
        place.fetch()
    assert not place.shelf.asked


def test_releasing_twice_changes_nothing_and_another_model_is_refused(place):
    first = place.release(now=datetime(2026, 1, 1, tzinfo=UTC))
    assert place.release(now=datetime(2026, 2, 1, tzinfo=UTC)) == first
    model = place.kit.folder / "state" / "runs" / NAME / "adapter" / "head.safetensors"
    changed = bytearray(model.read_bytes())
    changed[-1] ^= 1
    os.unlink(model)
    model.write_bytes(changed)
    with pytest.raises(ConfigError, match="another model of the run 'small' was released"):
        place.release()
    withdraw(place.kit, NAME)
    assert offered_releases(place.site()) == ([], 0)
    assert place.release().digest != first.digest


def test_what_is_withdrawn_and_given_again_is_the_same_release(place):
    """Sites that have it would refuse one of another digest."""
    first = place.release(now=datetime(2026, 1, 1, tzinfo=UTC))
    withdraw(place.kit, NAME)
    assert offered_releases(place.site()) == ([], 0)
    assert not (releases_folder(place.kit.folder) / RUN_ID / names.ADAPTER).exists()
    again = place.release(now=datetime(2026, 2, 1, tzinfo=UTC))
    assert again.digest == first.digest
    assert [offer.release.digest for offer in offered_releases(place.site())[0]] == [first.digest]


def test_only_a_finished_run_is_released(place):
    with pytest.raises(ConfigError, match="is not there"):
        release_run(place.kit, "other")
    job = place.kit.folder / "state" / "runs" / NAME / names.JOB
    job.write_text(job.read_text().replace("finished", "running"))
    with pytest.raises(ConfigError, match="is running"):
        place.release()
    with pytest.raises(ConfigError, match="no model of the run"):
        withdraw(place.kit, NAME)


def test_two_runs_of_one_name_are_told_apart(place):
    place.release()
    shutil.rmtree(place.kit.folder / "state" / "runs" / NAME)
    place.finish_run(NAME, "feedfacefeedface")
    place.release()
    with pytest.raises(ConfigError, match="several released runs"):
        place.fetch()
    assert place.fetch(wanted="feedfacefeedface").release.run == "feedfacefeedface"


def test_the_commands(place, monkeypatch):
    monkeypatch.chdir(place.folder)
    policy = place.folder / "site.toml"
    policy.write_text(f"[model]\npath = {json.dumps(str(place.checkpoint))}\n")
    kit, own = place.kit_folder("anne"), str(place.kit.folder)

    def said(*arguments: str) -> str:
        done = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "250"})
        assert done.exit_code == 0, done.output
        return done.output

    assert "released no model" in said("client", "models", "list", "--kit", str(kit))
    digest = json.loads(said("server", "release", NAME, "--kit", own, "--json"))["digest"]
    place.train()
    listed = said("client", "models", "list", "--kit", str(kit))
    assert NAME in listed
    assert digest[:32] in listed
    assert "yes" in listed
    told = said("client", "models", "fetch", NAME, "--kit", str(kit), "--policy", str(policy))
    assert digest in told
    assert "this site took part" in told
    assert f"fedllm client personalise models/{NAME} --kit {kit} --policy {policy}" in told
    assert (place.folder / "models" / NAME / names.RELEASE).exists()
    again = said(
        "client", "models", "fetch", RUN_ID, "--kit", str(kit), "--policy", str(policy), "--json"
    )
    assert json.loads(again)["bytes"] == 0
    assert "no more" in said("server", "release", NAME, "--kit", own, "--withdraw")


def test_what_was_signed_first_is_kept(place):
    place.release()
    release = place.fetch().release
    kept = kept_path(place.site(), release)
    assert protocol.verify_release(kept.read_text(), place.kit.identity.public_bytes()) == release
    assert kept.stat().st_mode & 0o777 == 0o600
