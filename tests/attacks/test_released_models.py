"""A coordinator, a node or a network that turns against released models, over real TLS."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from support.deployment import wait_until
from support.releases import NAME, RUN_ID, Releasing
from support.wire import client_of, node_key, proof

from fedllm.canonical import sha256_hex
from fedllm.errors import FedllmError, PeerError, RefusedError
from fedllm.federation.protocol.releases import (
    MAX_LIST_BYTES,
    PIECE_PATH,
    RELEASES_PATH,
    piece_request,
    read_unverified_release,
    sign_release,
)
from fedllm.federation.transport.bodies import Patience
from fedllm.federation.transport.releases import with_releases
from fedllm.identity.keys import Identity
from fedllm.runs import names
from fedllm_client import fetching
from fedllm_client.releases import kept_path, offered_releases
from fedllm_server.releasing import releases_folder


@pytest.fixture(scope="module")
def releasing(tiny_checkpoint, tmp_path_factory):
    made = Releasing(tmp_path_factory.mktemp("releasing"), tiny_checkpoint("bert"))
    yield made
    made.close()


@pytest.fixture
def place(releasing):
    releasing.reset()
    releasing.train()
    releasing.release()
    return releasing


def document(place) -> str:
    return (releases_folder(place.kit.folder) / RUN_ID / names.RELEASE).read_text()


def signed_anew(place, by=None, **changes) -> bytes:
    """What a coordinator may sign that says something else, as a list of one."""
    release = replace(read_unverified_release(document(place)), **changes)
    return f"[{sign_release(release, by or place.kit.identity)}]".encode()


def nothing_came(place) -> bool:
    return not (place.folder / "models").exists() or not list((place.folder / "models").iterdir())


def test_bytes_that_were_changed_on_the_way_are_refused_and_not_kept(place):
    def flipped(body, content):
        return content[:-1] + bytes([content[-1] ^ 1])

    place.shelf.change_piece = flipped
    with pytest.raises(PeerError, match="not what the coordinator signed"):
        place.fetch()
    assert not (place.folder / "models" / "anne").exists()
    place.shelf.change_piece = lambda body, content: content
    assert place.fetch().new_bytes == place.release().size


def test_files_that_are_swapped_are_refused(place):
    adapter = releases_folder(place.kit.folder) / RUN_ID / names.ADAPTER
    one, other = adapter / "adapter_config.json", adapter / "shared_model.json"
    texts = one.read_bytes(), other.read_bytes()
    one.unlink()
    other.unlink()
    one.write_bytes(texts[1].ljust(len(texts[0])))
    other.write_bytes(texts[0][: len(texts[1])])
    with pytest.raises((PeerError, FedllmError)):
        place.fetch()
    assert not (place.folder / "models" / "anne").exists()


def test_another_model_for_each_site_shows_by_its_digest(place):
    """No site can see it alone; both hold the coordinator's signature."""
    honest = place.fetch("anne").release
    other = replace(honest.files[0], sha256=sha256_hex("another"), size=7)
    lie = signed_anew(place, files=(other, *honest.files[1:]))
    place.shelf.change_list = lambda content: lie
    bob = place.site("bob")
    (offer,), wrong = offered_releases(bob)
    assert wrong == 0
    place.shelf.change_piece = lambda body, content: (
        b"another" if json.loads(body)["file"] == other.name else content
    )
    found = fetching.fetch(bob, place.base, offer, place.folder / "models" / "bob")
    assert found.release.digest != honest.digest
    assert kept_path(bob, honest).read_text() != kept_path(place.site("anne"), honest).read_text()


def test_a_second_model_of_the_same_run_is_refused_whichever_is_older(place):
    first = place.fetch().release
    for when, words in ((2020, "an older release"), (2040, "another release")):
        changed = signed_anew(place, time=datetime(when, 1, 1, tzinfo=UTC))
        place.shelf.change_list = lambda content, changed=changed: changed
        with pytest.raises(RefusedError, match=words) as caught:
            place.fetch(out=place.folder / "models" / "again")
        assert str(kept_path(place.site(), first)) in caught.value.remedy
    assert [path.name for path in (place.folder / "models").iterdir()] == ["anne"]


def test_the_other_release_is_noticed_in_the_middle_of_a_transfer(place, monkeypatch):
    """What was begun under one document does not go on under another."""
    monkeypatch.setattr(fetching, "_TRIES", 1)
    place.shelf.change_piece = lambda body, content: b""
    with pytest.raises(FedllmError):
        place.fetch()
    changed = signed_anew(place, summary={})
    place.shelf.change_list = lambda content: changed
    with pytest.raises(RefusedError, match="another release"):
        place.fetch()


def test_a_key_that_is_not_in_the_roster_signs_nothing(place):
    lie = signed_anew(place, by=Identity.generate("coordinator"))
    place.shelf.change_list = lambda content: lie
    assert offered_releases(place.site()) == ([], 1)
    with pytest.raises(PeerError, match="no release of 'small' is signed by the coordinator"):
        place.fetch()
    assert nothing_came(place)


def test_the_release_of_another_federation_is_none(place):
    lie = signed_anew(place, federation="south")
    place.shelf.change_list = lambda content: lie
    assert offered_releases(place.site()) == ([], 1)


def test_a_base_model_that_the_adapter_was_not_made_for_is_refused(place):
    """Signed, and of the site's base by its word, with the adapter of another."""
    release = place.release()
    about = releases_folder(place.kit.folder) / RUN_ID / names.ADAPTER / "shared_model.json"
    text = about.read_text().replace(release.base, "0" * 64)
    about.unlink()
    about.write_text(text)
    files = tuple(
        replace(file, sha256=sha256_hex(text)) if file.name == about.name else file
        for file in release.files
    )
    lie = signed_anew(place, files=files)
    place.shelf.change_list = lambda content: lie
    with pytest.raises(PeerError, match="not made for the base model"):
        place.fetch()
    assert not (place.folder / "models" / "anne").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"config": "name = 'small'"},
        {"config": "\x00"},
        {"config": "x = " + "[" * 5000},
        {"name": "other"},
        {"summary": {"rounds": "many"}},
        {"summary": {"privacy": {"sites": 7}}},
    ],
    ids=["no run", "no TOML", "deep", "name", "figures", "sites"],
)
def test_what_a_release_says_of_its_run_is_read_strictly(place, changes):
    (place.site().folder / "state" / "ledger.sqlite").unlink()
    lie = signed_anew(place, **changes)
    place.shelf.change_list = lambda content: lie
    with pytest.raises(PeerError):
        place.fetch(wanted=changes.get("name", NAME))
    assert nothing_came(place)


def test_no_place_of_the_coordinators_choice_is_written_for_later_commands(place):
    (place.site().folder / "state" / "ledger.sqlite").unlink()
    config = place.terms.replace("the site's own", "/etc/shadow")
    lie = signed_anew(place, config=config)
    place.shelf.change_list = lambda content: lie
    assert "/etc/shadow" not in (place.fetch().folder / names.RUN_TOML).read_text()


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[", b"7", b"\xff", b"[" * 10_000, b"[" + b"{}," * 300 + b"{}]", b"[[],7,null]"],
    ids=["empty", "object", "cut", "number", "bytes", "deep", "many", "others"],
)
def test_a_list_that_is_none_is_an_error_in_words(place, content):
    place.shelf.change_list = lambda right: content
    try:
        assert offered_releases(place.site())[0] == []
    except PeerError as error:
        assert "damaged" in error.message


def test_an_answer_without_end_is_not_kept(place, monkeypatch):
    from fedllm_client import connection, releases

    monkeypatch.setattr(releases, "MAX_LIST_BYTES", 1 << 20)
    place.shelf.change_list = lambda content: b"[" + b" " * (8 << 20)
    with pytest.raises(FedllmError, match="cannot be asked"):
        offered_releases(place.site())
    status, content = connection.ask(place.site(), PIECE_PATH, b"{}", 10)
    assert (status, content) == (400, b"")


def test_a_folder_of_what_arrived_that_leads_elsewhere_is_refused(place):
    models, elsewhere = place.folder / "models", place.folder / "elsewhere"
    models.mkdir()
    elsewhere.mkdir()
    (models / ".anne.part").symlink_to(elsewhere)
    with pytest.raises(FedllmError, match="not this user's own folder"):
        place.fetch()
    assert not list(elsewhere.iterdir())


def test_a_file_of_what_arrived_that_leads_elsewhere_is_not_written(place, monkeypatch):
    monkeypatch.setattr(fetching, "_TRIES", 1)
    place.shelf.change_piece = lambda body, content: b""
    with pytest.raises(FedllmError):
        place.fetch()
    place.shelf.change_piece = lambda body, content: content
    victim = place.folder / "victim"
    victim.write_text("precious")
    adapter = place.folder / "models" / ".anne.part" / names.ADAPTER
    for path in adapter.iterdir():
        path.unlink()
        path.symlink_to(victim)
    with pytest.raises(OSError, match=r"symbolic|links"):
        place.fetch()
    assert victim.read_text() == "precious"


# --- the coordinator's listener ---------------------------------------------------------------


@pytest.fixture
def http(place):
    with client_of(place.site(), place.link) as client:
        yield client


def test_a_stranger_gets_no_model(place, http):
    body = piece_request(RUN_ID, "shared_model.json", 0)
    stranger = proof(ec.generate_private_key(ec.SECP384R1()))
    for path in (RELEASES_PATH, PIECE_PATH):
        for headers in ({}, stranger, proof(node_key(place.site()), age_s=3600)):
            answer = http.post(path, headers=headers, content=body)
            assert (answer.status_code, answer.content) == (401, b"")
        assert http.get(path).status_code == 404
    assert not place.shelf.asked


@pytest.mark.parametrize(
    ("run", "file"),
    [
        ("..", "shared_model.json"),
        (RUN_ID, "../release.json"),
        (RUN_ID, "../../../../keys/secret.bin"),
        (RUN_ID, "/etc/passwd"),
        (RUN_ID, "..json"),
        ("0" * 16, "shared_model.json"),
        (RUN_ID, "none.json"),
    ],
)
def test_a_registered_node_names_nothing_else_on_the_coordinators_disk(place, http, run, file):
    headers = proof(node_key(place.site()))
    answer = http.post(PIECE_PATH, headers=headers, content=piece_request(run, file, 0))
    assert answer.status_code in (400, 404)
    assert answer.content == b""


def test_a_link_in_the_coordinators_folder_is_not_followed(place, http):
    secret = place.kit.folder / "keys" / "secret.bin"
    (releases_folder(place.kit.folder) / RUN_ID / names.ADAPTER / "x.json").symlink_to(secret)
    answer = http.post(
        PIECE_PATH,
        headers=proof(node_key(place.site())),
        content=piece_request(RUN_ID, "x.json", 0),
    )
    assert (answer.status_code, answer.content) == (404, b"")


def test_what_is_behind_the_end_of_a_file_is_nothing(place, http):
    answer = http.post(
        PIECE_PATH,
        headers=proof(node_key(place.site())),
        content=piece_request(RUN_ID, "shared_model.json", 1 << 30),
    )
    assert (answer.status_code, answer.content) == (404, b"")


def test_who_does_not_read_holds_little_and_is_given_up(place):
    """A node that asks for pieces and reads none; others are served all the while."""
    # More than the kernel keeps for a connection.
    place.shelf.change_list = lambda content: bytes(MAX_LIST_BYTES)
    kit = place.site()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile=str(kit.ca_certificate))
    silent = []
    for _ in range(4):
        plain = socket.create_connection(("127.0.0.1", place.port), timeout=60)
        stream = context.wrap_socket(plain, server_hostname="127.0.0.1")
        lines = [f"{name}: {value}" for name, value in proof(node_key(kit)).items()]
        head = [f"POST {RELEASES_PATH} HTTP/1.1", "host: x", "content-length: 0", *lines]
        stream.sendall("\r\n".join(head).encode() + b"\r\n\r\n")
        silent.append(stream)
    body = piece_request(RUN_ID, "shared_model.json", 0)
    with client_of(kit, place.link) as client:

        def status(name: str) -> int:
            headers = proof(node_key(place.site(name)))
            return client.post(PIECE_PATH, headers=headers, content=body).status_code

        wait_until(lambda: status("anne") == 429, 60.0)
        assert status("bob") == 200
        for stream in silent:
            stream.close()
        wait_until(lambda: status("anne") == 200, 60.0)


def test_an_answer_that_nobody_takes_ends_after_its_time(place):
    taken: list[bytes] = []

    async def receive():
        return {"type": "http.request", "body": piece_request(RUN_ID, "shared_model.json", 0)}

    async def send(event):
        if event["type"] == "http.response.body":
            taken.append(event["body"])
            await asyncio.sleep(3600)

    async def never(*_):
        raise AssertionError

    patience = Patience(silence_s=0.05, bytes_per_s=1e9)
    app = with_releases(never, place.shelf, patience)
    asyncio.run(app({"path": PIECE_PATH}, receive, send))
    assert len(taken) == 1
