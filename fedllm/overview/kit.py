"""Whose kit it is, read without its keys."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fedllm.canonical import from_hex
from fedllm.errors import ConfigError
from fedllm.identity.kit_folder import check_permissions, read_description
from fedllm.identity.roster import Roster, verify_roster


@dataclass(frozen=True)
class SiteKit:
    """What is public of a site's kit, and where its state lies.

    Attributes
    ----------
    folder, state : Path
        The kit, and where its service keeps what it must not lose.
    name, shown : str
        The site's name, and with its title for people.
    federation, address : str
        Which federation, and where its coordinator is.
    public_key : bytes
        By which the site's ledger is checked, from the signed roster.
    """

    folder: Path
    name: str
    shown: str
    federation: str
    address: str
    public_key: bytes

    @property
    def state(self) -> Path:
        """The folder of the site's state."""
        return self.folder / "state"


def read_site_kit(folder: Path) -> SiteKit:
    """Read what is public of a site's kit.

    Raises
    ------
    ConfigError
        If it is no finished kit of a site, others can read it, or it is another user's.
    PeerError
        If its roster is not signed by the root that it pinned.
    """
    description = read_description(folder)
    if description["role"] != "site":
        raise ConfigError(
            f"{folder} is the kit of the {description['role']}, not of a site",
            "give the site's kit with --kit",
        )
    if folder.stat().st_uid != os.geteuid():
        # Its service could not use what another user leaves there.
        raise ConfigError(
            f"{folder} is another user's", "run as its owner: sudo -u OWNER fedllm client ..."
        )
    check_permissions(folder)
    roster = _roster(folder, description["root"])
    name = description["name"]
    if name not in roster.sites:
        raise ConfigError(
            f"'{name}' is not in the roster of {folder}",
            "ask the operator whether this site was revoked, or enroll again",
        )
    return SiteKit(
        folder, name, roster.shown(name), roster.federation, roster.address, roster.site_key(name)
    )


def _roster(folder: Path, root: str | None) -> Roster:
    if root is None:
        raise ConfigError(
            f"the kit {folder} is not complete: the operator has not answered its request",
            f"install the answer: fedllm client accept ANSWER --kit {folder}",
        )
    try:
        text = (folder / "roster.json").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{folder / 'roster.json'} cannot be read ({type(error).__name__})",
            "restore the kit from its backup",
        ) from None
    return verify_roster(text, from_hex(root))
