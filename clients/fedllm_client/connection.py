"""Whether a site reaches its coordinator: name, TCP, TLS with the federation's own CA, clock."""

from __future__ import annotations

import base64
import http
import http.client
import socket
import ssl
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedllm.errors import FedllmError, PeerError
from fedllm.identity.kits import Kit, split_address
from fedllm.identity.roster import ROSTER_PATH

_TIMEOUT_S = 10.0
_MAX_ROSTER_BYTES = 16 << 20
_PART_BYTES = 64 << 10
# An answer must come at this rate on average; a slow line of a site manages it.
_SLOWEST_BYTES_PER_S = 8192.0


@dataclass(frozen=True)
class Reached:
    """What the coordinator showed.

    Attributes
    ----------
    protocol : str
        As "TLSv1.3".
    certificate_expires : datetime
        End of its TLS certificate (UTC).
    clock_difference_s : float, optional
        This machine's clock minus the coordinator's, in seconds, to about one second; None
        if its answer names no time.
    """

    protocol: str
    certificate_expires: datetime
    clock_difference_s: float | None
    knows_this_node: bool


def reach_coordinator(kit: Kit) -> Reached:
    """Connect as the site's node will, ask for nothing, and hang up.

    A proxy that the environment names (``HTTPS_PROXY``, ``NO_PROXY``) is used, as the node
    does; TLS goes through it untouched.

    Raises
    ------
    FedllmError
        If the name, the network or the port is the trouble.
    PeerError
        If somebody answers who is not the federation's coordinator.
    """
    proxy = _proxy(split_address(kit.address)[0])
    _try_tcp(*(proxy or split_address(kit.address)))
    connection = _connection(kit, proxy)
    try:
        connection.connect()
        return _look(connection, kit)
    except ssl.SSLCertVerificationError as error:
        raise _not_the_coordinator(kit.address, error) from None
    except (OSError, http.client.HTTPException) as error:
        by = f" through the proxy {proxy[0]}:{proxy[1]}" if proxy else ""
        raise FedllmError(
            f"{kit.address} answers{by}, but not in TLS 1.3 ({reason(error)})",
            "let firewall and proxy pass the connection untouched (no TLS inspection), and check "
            "that the port is the coordinator's",
        ) from None
    finally:
        connection.close()


def fetch_roster(kit: Kit) -> str:
    """Ask the coordinator for the newest signed roster; whether it is one, the caller checks.

    Raises
    ------
    FedllmError
        If the coordinator cannot be reached, or gives none to this node.
    """
    try:
        status, content = ask(kit, ROSTER_PATH, b"", _MAX_ROSTER_BYTES)
        if status != http.HTTPStatus.OK or not content:
            raise FedllmError(f"the coordinator gave no roster (status {status})")
        return content.decode()
    except (OSError, http.client.HTTPException, UnicodeDecodeError) as error:
        raise FedllmError(f"the roster was not fetched ({reason(error)})") from None


def ask(kit: Kit, path: str, body: bytes, largest: int) -> tuple[int, bytes]:
    """Ask the coordinator for something, over TLS and with this node's proof of its key.

    Parameters
    ----------
    largest : int
        Most bytes of an answer; no more are read.

    Returns
    -------
    (int, bytes)
        Status and content, which nobody has checked; redirects are not followed, and nothing is
        unpacked.

    Raises
    ------
    OSError, http.client.HTTPException
        If there is no connection, it broke, or the answer is too long or too slow.
    PeerError
        If somebody answers who is not the federation's coordinator.
    """
    connection = _connection(kit, _proxy(split_address(kit.address)[0]))
    deadline = time.monotonic() + _TIMEOUT_S + largest / _SLOWEST_BYTES_PER_S
    try:
        connection.request("POST", path, body=body, headers=_proof(kit))
        answer = connection.getresponse()
        parts: list[bytes] = []
        left = largest
        while part := answer.read1(min(left + 1, _PART_BYTES)):
            parts.append(part)
            left -= len(part)
            if left < 0 or time.monotonic() > deadline:
                raise TimeoutError("the answer is too long or too slow")
        return answer.status, b"".join(parts)
    except ssl.SSLCertVerificationError as error:
        raise _not_the_coordinator(kit.address, error) from None
    finally:
        connection.close()


def _connection(kit: Kit, proxy: tuple[str, int] | None) -> http.client.HTTPSConnection:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cafile=str(kit.ca_certificate))
    host, port = split_address(kit.address)
    connection = http.client.HTTPSConnection(
        *(proxy or (host, port)), context=context, timeout=_TIMEOUT_S
    )
    if proxy:
        connection.set_tunnel(host, port)
    return connection


def _proxy(host: str) -> tuple[str, int] | None:
    if urllib.request.proxy_bypass(host):
        return None
    proxies = urllib.request.getproxies()
    found = urllib.parse.urlsplit(proxies.get("https") or proxies.get("all") or "")
    return (found.hostname, found.port or 80) if found.hostname else None


def _try_tcp(host: str, port: int) -> None:
    try:
        socket.create_connection((host, port), timeout=_TIMEOUT_S).close()
    except socket.gaierror:
        raise FedllmError(
            f"the name {host} is not known to this machine's DNS",
            f"ask the network team to let this machine resolve {host}",
        ) from None
    except TimeoutError:
        raise FedllmError(
            f"no answer from {host} port {port} within {_TIMEOUT_S:.0f} seconds",
            f"ask the network team to allow outbound TCP to {host} port {port}; nothing needs to "
            "come in",
        ) from None
    except OSError as error:
        raise FedllmError(
            f"{host} port {port} cannot be reached ({reason(error)})",
            "if the coordinator is running, ask the network team to allow outbound TCP to "
            f"{host} port {port}",
        ) from None


def _look(connection: http.client.HTTPSConnection, kit: Kit) -> Reached:
    secured = connection.sock
    if not isinstance(secured, ssl.SSLSocket):
        raise ssl.SSLError("no TLS")
    expires = ssl.cert_time_to_seconds(str((secured.getpeercert() or {})["notAfter"]))
    protocol = secured.version() or "TLS"
    # Only whether the door opens for the key counts; the body is not read.
    connection.request("POST", ROSTER_PATH, body=b"\xff", headers=_proof(kit))
    answer = connection.getresponse()
    return Reached(
        protocol,
        datetime.fromtimestamp(expires, UTC),
        _difference(answer.getheader("Date")),
        answer.status != http.HTTPStatus.UNAUTHORIZED,
    )


def _proof(kit: Kit) -> dict[str, str]:
    """Return the headers by which a node of Flower 1.41 proves its key."""
    if kit.node_key is None:
        return {}
    key = serialization.load_ssh_private_key(kit.node_key.read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        return {}
    moment = datetime.now(UTC).isoformat()
    signature = key.sign(moment.encode(), ec.ECDSA(hashes.SHA256()))
    return {
        "flwr-public-key": base64.b64encode(kit.roster.node_keys[kit.name]).decode(),
        "flwr-timestamp": moment,
        "flwr-signature": base64.b64encode(signature).decode(),
    }


def _difference(date: str | None) -> float | None:
    try:
        theirs = parsedate_to_datetime(date or "")
    except ValueError:
        return None
    if theirs.tzinfo is None:
        return None
    # The header is cut to whole seconds; half of one makes that fair.
    return (datetime.now(UTC) - theirs).total_seconds() - 0.5


def _not_the_coordinator(address: str, error: ssl.SSLCertVerificationError) -> PeerError:
    # The numbers are OpenSSL's X509_V_ERR_* (see X509_STORE_CTX_get_error).
    reasons = {
        9: "its certificate is not valid yet: compare this machine's clock",
        10: "its certificate has expired, or this machine's clock is wrong",
        62: "its certificate names another host",
        64: "its certificate names another address",
    }
    reason = reasons.get(error.verify_code, "its certificate is not from the federation's CA")
    return PeerError(
        f"who answers at {address} is not the federation's coordinator: {reason}",
        "if your network opens TLS connections to inspect them, exempt this address; otherwise "
        "tell the federation's operator, and do not go on",
    )


def reason(error: Exception) -> str:
    """Name what a failed connection died of, in a word or a few."""
    text = getattr(error, "reason", None) or getattr(error, "strerror", None)
    return str(text or type(error).__name__)
