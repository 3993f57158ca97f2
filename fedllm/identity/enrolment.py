"""How a party whose keys never leave it joins: its request, the operator's answer.

The request carries public keys and proves that the sender holds the private ones
(proof of possession, RFC 4211 section 4). Who sent it is for two people to settle: they
read the fingerprint to each other over the phone. The answer holds nothing secret.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedllm.canonical import UNREADABLE, from_hex, labelled_json, read_object, reading, sha256
from fedllm.errors import ConfigError, PeerError, RefusedError
from fedllm.files import atomic_directory, given_path, write_bytes
from fedllm.identity import certificates
from fedllm.identity.keys import Identity, verify_signature
from fedllm.identity.kit_folder import (
    check_permissions,
    locked,
    read_description,
    write_description,
)
from fedllm.identity.kits import install_roster
from fedllm.identity.roster import (
    ROLES,
    Role,
    Root,
    Roster,
    is_node_key,
    is_site_name,
    sign_roster,
    verify_roster,
)
from fedllm.identity.titles import MAX_LETTERS, complaint, normal, safe_name, shown

_REQUEST = "fedllm.request.v1"
_ANSWER = "fedllm.answer.v1"


@dataclass(frozen=True)
class Request:
    """The public half of a kit.

    Attributes
    ----------
    role, name : str
        Who asks to take part.
    signing_key : bytes
        Ed25519 public key, 32 bytes.
    node_key : bytes, optional
        PEM of the P-384 public key (sites and the key authority).
    server_request : bytes, optional
        PKCS #10 request for the TLS certificate (coordinator).
    title : str, optional
        A site's name for people, in any script.
    """

    role: Role
    name: str
    signing_key: bytes
    node_key: bytes | None = None
    server_request: bytes | None = None
    title: str | None = None

    @property
    def shown(self) -> str:
        """The name as people should see it: the title, if there is one, and the name."""
        return shown(self.name, {self.name: self.title} if self.title else {})

    @property
    def fingerprint(self) -> str:
        """What two people read to each other: 120 bits of SHA-256 as six groups of four."""
        return spoken_fingerprint(_canonical(self._plain()))

    def _plain(self) -> dict[str, Any]:
        # Without a title, as it was before there were any.
        named = {"title": self.title} if self.title is not None else {}
        return named | {
            "role": self.role,
            "name": self.name,
            "signing_key": self.signing_key.hex(),
            "node_key": self.node_key.decode() if self.node_key else None,
            "server_request": self.server_request.decode() if self.server_request else None,
        }


def spoken_fingerprint(content: bytes) -> str:
    """Return 120 bits of the SHA-256 of ``content`` in base32, e.g. ``K3QA-...`` (29 letters)."""
    text = base64.b32encode(sha256(content)[:15]).decode()
    return "-".join(text[i : i + 4] for i in range(0, len(text), 4))


def root_fingerprint(root: bytes) -> str:
    """Return the fingerprint of a federation's root key, to be compared over the phone."""
    return spoken_fingerprint(b"fedllm.root.v1\x1f" + root)


def same_fingerprint(one: str, other: str) -> bool:
    """Compare two fingerprints as people type them: case, spaces and hyphens do not count."""

    def bare(text: str) -> str:
        return "".join(text.upper().replace("-", " ").split())

    return bool(bare(one)) and bare(one) == bare(other)


def enroll(folder: Path, role: Role, name: str) -> Request:
    """Make a kit with new keys, still without a roster, and its request.

    Called again for a kit of the same party, it replaces nothing and returns the request.

    Parameters
    ----------
    folder : Path
        To make.
    role : Role
        Whose kit.
    name : str
        The role, or a site's name. One in any script becomes the site's title, and the safe name
        nearest to it the name that files and messages use.

    Raises
    ------
    ConfigError
        If the name is not valid, or the folder holds anything else.
    """
    name, title = _name_and_title(role, name)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is no folder", "choose another one with --out")
    if not folder.exists() or not any(folder.iterdir()):
        _make_kit(folder, role, name, title)
    description = read_description(folder)
    if (description["role"], description["name"]) != (role, name):
        raise ConfigError(
            f"{folder} is already the kit of the {description['role']} '{description['name']}'",
            "choose another folder; keys are never replaced",
        )
    check_permissions(folder)
    path = folder / "request.json"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read ({type(error).__name__})",
            "put the request back that was sent to the operator, or enroll in another folder",
        ) from None
    return read_request(text)


def _name_and_title(role: Role, name: str) -> tuple[str, str | None]:
    title = normal(name)
    if role != "site":
        if name != role:
            raise ConfigError(f"{name!r} cannot name a {role}", f"the {role}'s name is '{role}'")
        return name, None
    if is_site_name(name):
        return name, None
    made = safe_name(title)
    if words := _unfit(title) or (made in ROLES and "it is the name of another role"):
        raise ConfigError(
            f"{name!r} cannot name a site: {words}",
            "give a name in any script: on one line, with a letter or digit, at most "
            f"{MAX_LETTERS} letters, without / and \\, and not {', '.join(ROLES)}",
        )
    return made, title


def _unfit(title: str) -> str | None:
    # What looks like a path is one that was given by mistake.
    if found := [sign for sign in "/\\" if sign in title]:
        return f"it holds '{found[0]}'"
    if words := complaint({"": title}):
        return words
    return None if any(map(str.isalnum, title)) else "it has no letter and no digit"


def _make_kit(folder: Path, role: Role, name: str, title: str | None) -> None:
    identity = Identity.generate(name)
    node = ec.generate_private_key(ec.SECP384R1()) if role in ("site", "authority") else None
    server = certificates.new_tls_key() if role == "coordinator" else None
    request = Request(
        role,
        name,
        identity.public_bytes(),
        node.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        if node
        else None,
        certificates.make_signing_request(server, name) if server else None,
        title,
    )
    with given_path(), atomic_directory(folder, mode=0o700) as temporary:
        identity.save(temporary / "keys")
        if node:
            openssh = node.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.OpenSSH,
                serialization.NoEncryption(),
            )
            write_bytes(temporary / "node.key", openssh, mode=0o600)
        if server:
            pem = certificates.private_pem(server)
            write_bytes(temporary / "server.key", pem, mode=0o600)
        text = _sign_request(request, identity, node)
        write_bytes(temporary / "request.json", text.encode(), mode=0o600)
        description = {"role": role, "name": name, "federation": None}
        write_description(temporary, description | {"root": None, "roster_version": 0})


def _sign_request(
    request: Request, identity: Identity, node: ec.EllipticCurvePrivateKey | None
) -> str:
    plain = request._plain()
    message = _canonical(plain)
    proofs = {"signing_key": identity.sign(message).hex()}
    if node is not None:
        proofs["node_key"] = node.sign(message, ec.ECDSA(hashes.SHA384())).hex()
    value = {"format": _REQUEST, "request": plain, "proofs": proofs}
    return json.dumps(value, indent=2) + "\n"


def read_request(text: str) -> Request:
    """Read a request and check that its sender holds every private key.

    Raises
    ------
    PeerError
        If it is damaged, names an impossible party, or a proof does not hold.
    """
    damage = PeerError("the request is damaged", "ask for the file request.json once more")
    with reading(damage):
        value = read_object(text)
        plain, proofs, kind = value["request"], value["proofs"], value["format"]
        request = Request(
            role=plain["role"],
            name=str(plain["name"]),
            signing_key=from_hex(plain["signing_key"], 32),
            node_key=plain["node_key"].encode() if plain["node_key"] is not None else None,
            server_request=plain["server_request"].encode()
            if plain["server_request"] is not None
            else None,
            title=str(plain["title"]) if "title" in plain else None,
        )
        signature = from_hex(proofs["signing_key"])
        node_signature = from_hex(proofs.get("node_key", ""))
        if request._plain() != plain or kind != _REQUEST or request.role not in ROLES:
            raise damage
    expected = (
        is_site_name(request.name) if request.role == "site" else request.name == request.role
    )
    if not expected:
        raise PeerError(
            f"the request: {request.name!r} cannot name a {request.role}",
            "ask for a new request, made with fedllm client enroll",
        )
    if request.title is not None and (
        request.role != "site" or complaint({request.name: request.title})
    ):
        raise PeerError(
            f"the request of '{request.name}' has a name for people that cannot be shown",
            "ask for a new request, made with fedllm client enroll",
        )
    message = _canonical(request._plain())
    verify_signature(request.signing_key, signature, message, request.name)
    _check_node_proof(request, node_signature, message)
    _check_server_proof(request)
    return request


def _check_node_proof(request: Request, signature: bytes, message: bytes) -> None:
    wanted = request.role in ("site", "authority")
    fits = (request.node_key is not None) == wanted
    if fits and request.node_key is not None:
        fits = is_node_key(request.node_key) and _verifies(request.node_key, signature, message)
    if not fits:
        raise PeerError(
            f"the request of '{request.name}' does not prove that it holds its node key",
            "ask for a new request, made with fedllm enroll",
        )


def _verifies(node_key: bytes, signature: bytes, message: bytes) -> bool:
    try:
        key = serialization.load_pem_public_key(node_key)
        if not isinstance(key, ec.EllipticCurvePublicKey):
            return False
        key.verify(signature, message, ec.ECDSA(hashes.SHA384()))
    except (InvalidSignature, *UNREADABLE):
        return False
    return True


def _check_server_proof(request: Request) -> None:
    fits = (request.server_request is not None) == (request.role == "coordinator")
    if fits and request.server_request is not None:
        try:
            signing_request = x509.load_pem_x509_csr(request.server_request)
            fits = signing_request.is_signature_valid and isinstance(
                signing_request.public_key(), ec.EllipticCurvePublicKey
            )
        except certificates.UNREADABLE_X509:
            fits = False
    if not fits:
        raise PeerError(
            f"the request of '{request.name}' does not prove that it holds its TLS key",
            "ask for a new request, made with fedllm enroll",
        )


def make_answer(roster: Roster, root: Root, server_certificate: str | None) -> str:
    """Return the operator's answer: the signed roster that lists the party, nothing secret."""
    value = {
        "format": _ANSWER,
        "root": root.public_bytes().hex(),
        "roster": json.loads(sign_roster(roster, root)),
        "server_certificate": server_certificate,
    }
    return json.dumps(value, indent=2) + "\n"


@dataclass(frozen=True)
class Answer:
    """An operator's answer whose roster its own root key signed; whose root that is, ask."""

    root: bytes
    roster: Roster
    roster_text: str
    server_certificate: str | None

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the root key; the operator reads it out over the phone."""
        return root_fingerprint(self.root)


def read_answer(text: str) -> Answer:
    """Read an answer.

    Raises
    ------
    PeerError
        If it is damaged.
    """
    damage = PeerError("the answer is damaged", "ask the operator for it once more")
    with reading(damage):
        value = read_object(text)
        root, roster_text = from_hex(value["root"], 32), json.dumps(value["roster"], indent=2)
        certificate = value["server_certificate"]
        if value["format"] != _ANSWER or not isinstance(certificate, str | None):
            raise damage
    return Answer(root, verify_roster(roster_text, root), roster_text + "\n", certificate)


def accept(folder: Path, answer: Answer) -> Roster:
    """Pin the answer's root key in a kit and install roster and certificates.

    The caller has compared `Answer.fingerprint` with what the operator read out.

    Raises
    ------
    RefusedError
        If the kit pinned another root key, or the answer was made for another party.
    ConfigError
        If the folder is no kit.
    """
    read_description(folder)
    with locked(folder):
        return _accept(folder, answer)


def _accept(folder: Path, answer: Answer) -> Roster:
    description = read_description(folder)
    check_permissions(folder)
    if description["root"] not in (None, answer.root.hex()):
        raise RefusedError(
            f"the kit {folder} belongs to a federation with another root key",
            "use the answer of that federation, or enroll with a new folder",
        )
    server = answer.server_certificate if description["role"] == "coordinator" else None
    if server is not None:
        _check_made_for(server, folder / "server.key")
    identity = Identity.load(description["name"], folder / "keys")
    pinned = description | {"root": answer.root.hex()}
    roster = install_roster(folder, pinned, answer.roster_text, identity)
    if server is not None:
        write_bytes(folder / "server.pem", server.encode(), mode=0o600)
    return roster


def _check_made_for(certificate_text: str, key_path: Path) -> None:
    certificate = certificates.read_certificates(certificate_text, "the answer")[0]
    if certificate.public_key() != certificates.read_private_key(key_path).public_key():
        raise RefusedError(
            "the answer's TLS certificate was made for another kit",
            "use the answer to this kit's own request",
        )


def _canonical(plain: dict[str, Any]) -> bytes:
    return labelled_json(_REQUEST, plain)
