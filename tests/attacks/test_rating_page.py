"""Other programs and pages of a rater's machine, and texts that are no mere texts."""

from __future__ import annotations

import socket

import httpx
import pytest
from support.browser import FOREIGN
from support.rating import ORIGIN, QUESTIONS, page, session

from fedllm.rating.answers import Drawn
from fedllm.rating.prompts import Question

SECRET = "Zebediah"
HOSTILE = (
    "<script>fetch('//evil')</script>",
    "</div></main><form action='//evil'><img src=x onerror=alert(1)>",
    "\u202e\x1b[2J{{ 7*7 }}",
)


def draw(question, given_up):
    return Drawn(HOSTILE)


@pytest.fixture
def served(tmp_path):
    questions = [Question(1, f"{SECRET} <b>bold</b>", "<i>c</i>"), *QUESTIONS[1:]]
    with session(tmp_path, questions=questions, sampling=draw) as own:
        assert own.item(30) is not None
        with page(own) as found:
            yield found


@pytest.fixture
def log(tmp_path):
    return (tmp_path / "ratings.jsonl").read_text


def unit():
    return Question(1, f"{SECRET} <b>bold</b>", "<i>c</i>").unit


def sent(served, headers=(), url=None, **more):
    form = {"order": "rank", "unit": unit(), "words": "1 2 3"}
    origin = {"origin": f"http://127.0.0.1:{served.port}"}
    given = {"data": form, "headers": origin | dict(headers)} | more
    return httpx.post(url or served.url, **given)


def test_the_form_itself_is_taken(served, log):
    """Else nothing below would say anything."""
    assert sent(served).status_code == 303
    assert SECRET in log()


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", ""])
def test_a_name_that_was_let_point_here_is_refused(host, served, log):
    assert httpx.get(served.url, headers={"host": host}).status_code in (400, 403)
    found = sent(served, {"host": host, "origin": f"http://{host}"})
    assert found.status_code in (400, 403)
    assert SECRET not in found.text
    assert not log()


def test_without_the_secret_there_is_nothing(served, log):
    base = f"http://127.0.0.1:{served.port}"
    for path in ("/", "", "/x/", served.path[:-1], served.path[:-2] + "/", served.path * 2):
        for found in (httpx.get(base + path), sent(served, url=base + path)):
            assert found.status_code == 404
            assert SECRET not in found.text
            assert served.path.strip("/") not in found.text
            # No cookie, with which another page could make a browser act.
            assert not found.cookies
    assert not log()
    assert len(served.path) >= 43


@pytest.mark.parametrize("headers", FOREIGN)
def test_another_page_that_knows_the_address_cannot_send_the_form(headers, served, log):
    assert sent(served, headers).status_code == 403
    assert not log()


def test_a_form_without_an_origin_is_refused(served, log):
    form = {"order": "rank", "unit": unit(), "words": "1 2 3"}
    assert httpx.post(served.url, data=form).status_code == 403
    httpx.get(served.url, params=form)
    assert not log()


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({"json": {"order": "s"}, "data": None}, 415),
        ({"content": b"order=s", "data": None}, 415),
        ({"data": {"words": "1" * 20_000}}, 413),
        ({"data": {f"f{n}": "" for n in range(100)}}, 400),
        ({"data": {"order": ["s", "rank"]}}, 400),
    ],
)
def test_what_is_no_form_of_ours_is_refused(more, status, served, log):
    assert sent(served, **more).status_code == status
    assert not log()


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "HEAD", "TRACE"])
def test_other_methods_are_refused(method, served):
    assert httpx.request(method, served.url).status_code == 405


@pytest.mark.parametrize(
    "raw",
    [
        b"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nhost: evil\r\n\r\n",
        b"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\norigin: http://127.0.0.1\r\n"
        b"content-type: application/x-www-form-urlencoded\r\ntransfer-encoding: chunked\r\n\r\n"
        b"7\r\norder=s\r\n0\r\n\r\n",
        b"GET {path} HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
    ],
)
def test_bytes_that_no_browser_sends_are_refused(raw, served, log):
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as stream:
        stream.sendall(raw.replace(b"{path}", served.path.encode()))
        answer = stream.recv(1000)
    assert answer[9:12] in (b"400", b"403"), answer
    assert not log()


def test_texts_are_texts_whatever_they_look_like(served):
    found = httpx.get(served.url)
    for part in ("<script", "<img", "<b>", "<i>", "action='//evil", "\u202e", "\x1b"):
        assert part not in found.text
    assert "&lt;script&gt;" in found.text
    assert "\\u202e\\x1b[2J{{ 7*7 }}" in found.text
    again = sent(served, data={"order": "rank", "unit": unit(), "words": '"><script>'})
    assert "<script" not in again.text


def test_what_a_browser_may_do_with_the_page(served):
    one, other = httpx.get(served.url).headers, httpx.get(served.url).headers
    policy = dict(part.strip().split(" ", 1) for part in one["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert "script-src" not in policy
    assert policy["form-action"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["style-src"].startswith("'nonce-")
    assert policy["style-src"] not in other["content-security-policy"]
    assert one["cache-control"] == "no-store"
    assert one["x-content-type-options"] == "nosniff"
    # With no-referrer, a browser would send the form with the origin "null".
    assert one["referrer-policy"] == "same-origin"
    assert "set-cookie" not in one
    assert "server" not in one


def test_nothing_of_a_text_is_logged(served, capfd, caplog):
    httpx.get(served.url)
    sent(served)
    sent(served, url=f"http://127.0.0.1:{served.port}/{SECRET}")
    sent(served, data={"order": "rank", "unit": unit(), "words": SECRET})
    said = capfd.readouterr()
    assert SECRET not in "".join(served.log) + said.out + said.err + caplog.text


def test_an_error_inside_is_told_by_its_kind(served, monkeypatch):
    def broken(self):
        raise RuntimeError(SECRET)

    monkeypatch.setattr("fedllm.rating.session.Session.progress", broken)
    found = httpx.get(served.url)
    assert found.status_code == 500
    assert SECRET not in found.text
    assert served.log == ["error: RuntimeError"]


def test_the_page_listens_on_loopback_alone(served):
    assert ORIGIN.model.fingerprint not in httpx.get(served.url).text
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # No packet is sent; this only asks which address of ours would be used.
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no other address")
        own = probe.getsockname()[0]
    with socket.socket() as stream:
        stream.settimeout(5)
        assert stream.connect_ex((own, served.port)) != 0
