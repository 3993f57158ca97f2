"""Other users' programs, and other hosts' pages, against a site's page on loopback."""

from __future__ import annotations

import re

import httpx
import pytest
from support.browser import FOREIGN
from support.overview import TOKEN, Site, sent_line, serving

SECRETS = ("ward", "anne", "36,864", "ledger.jsonl")


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path)
    made.charge([1])
    made.did(sent_line(1))
    return made


@pytest.fixture
def served(site):
    with serving(site.look()) as (page, address), httpx.Client(base_url=address, timeout=60) as web:
        yield page, web


def let_in(web):
    """Open the page as somebody who has the token; returns its path."""
    found = web.get("/enter", params={"token": TOKEN})
    assert found.status_code == 303
    return found.headers["location"]


def form_of(web, home):
    return re.findall(r'name="form" value="([^"]+)"', web.get(home).text)[0]


def nothing_of_the_site(found):
    return not any(secret in found.text for secret in SECRETS)


def state_of(site):
    """All that a request could change: names and content of the state's files."""
    return {path.name: path.read_bytes() for path in site.state.iterdir() if path.is_file()}


def test_who_has_the_token_is_let_in(served):
    """Else nothing below would say anything."""
    _, web = served
    assert "ward" in web.get(let_in(web)).text


@pytest.mark.parametrize("token", ["", "wrong", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "\0", "é"])
def test_without_the_token_there_is_nothing(served, site, token):
    page, web = served
    before = state_of(site)
    found = web.get("/enter", params={"token": token})
    assert found.status_code in (401, 403)
    assert not found.cookies
    origin = {"origin": str(web.base_url).rstrip("/")}
    posted = web.post("/enter", data={"token": token}, headers=origin)
    assert posted.status_code in (401, 403)
    for path in ("/", page.base, f"{page.base}events", f"{page.base}ledger.jsonl", "/nothing"):
        found = web.get(path)
        assert found.status_code == 401
        assert nothing_of_the_site(found)
        assert page.base.strip("/") not in found.text or path.startswith(page.base)
    for action in ("pause", "resume", "stop"):
        sent = web.post(f"{page.base}{action}", data={"form": page._form}, headers=origin)
        assert sent.status_code == 401
    assert state_of(site) == before


def test_a_cookie_of_another_program_of_that_name_opens_nothing(served):
    page, web = served
    for value in ("", "x", page._cookie[:-1], TOKEN):
        headers = {"cookie": f"fedllm_site={value}; other={page._cookie}"}
        assert web.get(page.base, headers=headers).status_code == 401


def test_the_cookie_opens_no_other_path(served):
    """Nor does the path alone: both are needed, and a browser sends the cookie there alone."""
    page, web = served
    headers = {"cookie": f"fedllm_site={page._cookie}"}
    assert web.get(page.base, headers=headers).status_code == 200
    for path in ("/", "/run", "/x" * 10 + "/", page.base[:-2] + "/", page.base.rstrip("/")):
        assert web.get(path, headers=headers).status_code == 401


def test_the_cookie_goes_to_no_script_and_no_other_place(served):
    """Another user's program on another port is the same host for a browser."""
    page, web = served
    told = web.get("/enter", params={"token": TOKEN}).headers["set-cookie"]
    parts = [part.strip() for part in told.split(";")]
    assert set(parts[1:]) == {f"Path={page.base}", "HttpOnly", "SameSite=Strict"}
    assert TOKEN not in told
    assert len(page.base) >= 22
    assert len(page._cookie) >= 43


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1", "x:80", ""])
def test_a_name_that_was_let_point_here_is_refused(served, site, host):
    page, web = served
    home, before = let_in(web), state_of(site)
    form = form_of(web, home)
    for headers in ({"host": host}, {"host": host, "origin": f"http://{host}"}):
        for path in (home, "/", f"/enter?token={TOKEN}"):
            found = web.get(path, headers=headers)
            assert found.status_code in (400, 403)
            assert nothing_of_the_site(found)
        sent = web.post(f"{home}pause", data={"form": form}, headers=headers)
        assert sent.status_code in (400, 403)
    assert state_of(site) == before
    assert page.base == home


@pytest.mark.parametrize(
    "headers", [*FOREIGN, {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}]
)
def test_another_page_cannot_press_a_button(served, site, headers):
    _, web = served
    home = let_in(web)
    form, own = form_of(web, home), {"origin": str(web.base_url).rstrip("/")}
    before = state_of(site)
    for action in ("pause", "resume", "stop"):
        found = web.post(
            f"{home}{action}", data={"form": form, "sure": "yes"}, headers=own | headers
        )
        assert found.status_code == 403
    assert state_of(site) == before
    # Nor does a form without an origin.
    assert web.post(f"{home}pause", data={"form": form}).status_code == 403
    assert state_of(site) == before


@pytest.mark.parametrize("form", [None, "", "x", TOKEN])
def test_a_form_without_its_secret_does_nothing(served, site, form):
    page, web = served
    home, before = let_in(web), state_of(site)
    given = {} if form is None else {"form": form}
    origin = {"origin": str(web.base_url).rstrip("/")}
    for action in ("pause", "resume", "stop"):
        found = web.post(f"{home}{action}", data={"sure": "yes", **given}, headers=origin)
        assert found.status_code == 403
    found = web.post(f"{home}pause", data={"form": [page._form, page._form]}, headers=origin)
    assert found.status_code == 400
    assert state_of(site) == before


def test_looking_changes_nothing(served, site):
    page, web = served
    home = let_in(web)
    before = state_of(site)
    query = {"form": page._form, "sure": "yes"}
    for path in ("", "pause", "resume", "stop", "ledger.jsonl", "nothing"):
        web.get(f"{home}{path}", params=query)
    assert state_of(site) == before


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH", "HEAD"])
def test_other_methods_are_refused(served, site, method):
    page, web = served
    home, before = let_in(web), state_of(site)
    for path in (home, f"{home}pause"):
        assert web.request(method, path, params={"form": page._form}).status_code == 405
    assert state_of(site) == before


@pytest.mark.parametrize(
    ("site_", "mode", "status"),
    [
        ("cross-site", "no-cors", 403),
        ("same-site", "no-cors", 403),
        ("cross-site", "cors", 403),
        ("same-origin", "cors", 200),
        ("none", "navigate", 200),
    ],
)
def test_a_page_of_another_host_embeds_nothing_of_it(served, site_, mode, status):
    _, web = served
    home = let_in(web)
    told = {"sec-fetch-site": site_, "sec-fetch-mode": mode}
    for path in (home, "/style.css"):
        assert web.get(path, headers=told).status_code == status


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({"json": {"form": "x"}}, 415),
        ({"data": {"form": "1" * 20_000}}, 413),
        ({"data": {f"f{n}": "" for n in range(100)}}, 400),
    ],
)
def test_what_is_no_form_of_ours_is_refused(served, site, more, status):
    _, web = served
    home, before = let_in(web), state_of(site)
    origin = {"origin": str(web.base_url).rstrip("/")}
    assert web.post(f"{home}pause", headers=origin, **more).status_code == status
    assert state_of(site) == before


def test_the_token_is_compared_whatever_its_letters(served, monkeypatch):
    """In constant time, also of what is no ASCII."""
    import fedllm.overview.application as application

    compared = []
    real = application.hmac.compare_digest

    def noted(given, wanted):
        compared.append(wanted)
        return real(given, wanted)

    monkeypatch.setattr(application.hmac, "compare_digest", noted)
    _, web = served
    web.get("/enter", params={"token": "ü"})
    assert compared == [TOKEN.encode()]
