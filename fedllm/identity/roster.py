"""The list of a federation's parties and their public keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from fedllm.errors import PeerError


@dataclass(frozen=True)
class Roster:
    """Who takes part, and the Ed25519 public key (32 bytes) of each.

    Attributes
    ----------
    authority : bytes
        Public key of the key authority.
    sites : mapping of str to bytes
        Public key of each site by its name.
    """

    authority: bytes
    sites: Mapping[str, bytes]

    def site_key(self, name: str) -> bytes:
        """Return a site's public key.

        Raises
        ------
        PeerError
            If the roster does not know the site.
        """
        try:
            return self.sites[name]
        except KeyError:
            raise PeerError(
                f"'{name}' is not in the roster", "only the federation's operator can add a site"
            ) from None

    def to_json(self) -> str:
        """Write the roster as JSON with hexadecimal keys."""
        sites = {name: key.hex() for name, key in sorted(self.sites.items())}
        return json.dumps({"authority": self.authority.hex(), "sites": sites}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Roster:
        """Read what `to_json` wrote.

        Raises
        ------
        PeerError
            If it is damaged.
        """
        try:
            value = json.loads(text)
            sites = {str(name): bytes.fromhex(key) for name, key in value["sites"].items()}
            roster = cls(bytes.fromhex(value["authority"]), sites)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise PeerError("the roster is damaged", "fetch it again from the operator") from None
        if any(len(key) != 32 for key in (roster.authority, *roster.sites.values())):
            raise PeerError("the roster holds a key that is not 32 bytes long")
        return roster
