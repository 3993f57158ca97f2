"""HTTPS for those who know whose certificate it is, and nothing for others."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import httpx
import openai
import pytest
from support.kits import make_federation
from support.serving_runs import service

from fedllm.errors import ConfigError
from fedllm.serving.served import serve_models
from fedllm.serving.server import Address, tls_context


@pytest.fixture(scope="module")
def authorities(tmp_path_factory) -> list[Path]:
    """Kits of coordinators, whose certificates are for loopback, each under a CA of its own."""
    folders = [tmp_path_factory.mktemp("federation") for _ in range(2)]
    for folder in folders:
        make_federation(folder)
    return [next(folder.rglob("server.key")).parent for folder in folders]


@pytest.fixture(scope="module")
def running(authorities, tiny_checkpoint):
    kit = authorities[0]
    models = serve_models([f"plain={tiny_checkpoint('gpt2')}"], None, None, None, None)
    with service(models, tls=(kit / "server.pem", kit / "server.key")) as found:
        yield found


def trusting(kit: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=kit / "ca.pem")


def test_a_client_that_knows_the_authority_is_answered(running, authorities):
    with (
        httpx.Client(verify=trusting(authorities[0])) as line,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", http_client=line) as client,
    ):
        assert running.url.startswith("https://")
        request = {"model": "plain", "prompt": "my card", "max_tokens": 4, "temperature": 0}
        whole = client.completions.create(**request).choices[0].text
        parts = client.completions.create(**request, stream=True)
        assert "".join(p.choices[0].text for p in parts if p.choices) == whole != ""


def test_others_are_refused(running, authorities):
    with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
        httpx.get(f"{running.url}/health", verify=trusting(authorities[1]))
    with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
        httpx.get(f"{running.url}/health")
    # Under another name than the certificate's.
    with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
        httpx.get(f"https://localhost:{running.port}/health", verify=trusting(authorities[0]))
    # In the clear.
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{running.port}/health")
    assert httpx.get(f"{running.url}/health", verify=trusting(authorities[0])).is_success


def test_old_versions_are_refused(running, authorities):
    context = trusting(authorities[0])
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("127.0.0.1", running.port)) as line,
        pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(line, server_hostname="127.0.0.1")


def test_a_key_of_another_certificate_is_told(authorities):
    address = Address("127.0.0.1", 0, authorities[0] / "server.pem", authorities[1] / "server.key")
    with pytest.raises(ConfigError, match="cannot be read"):
        tls_context(address)
