"""What a federation is: the file that the operator writes and ``fedllm provision`` reads."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from fedllm.config import Section, parse, read_toml
from fedllm.identity.roster import ROLES, is_site_name
from fedllm.identity.titles import complaint, normal

Days = Annotated[int, Field(ge=1, le=36500)]
Keys = Literal["here", "enrolled"]
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


class CoordinatorSection(Section):
    """Where the coordinator listens.

    Attributes
    ----------
    hosts : list of str
        Host names and addresses that sites may use; the first one is the address in the
        roster, all of them are in the TLS certificate.
    port : int
        TCP port of the public listener.
    keys : {"here", "enrolled"}
        Whether its kit is made here, or it makes its keys itself and sends a request.
    """

    hosts: Annotated[tuple[str, ...], Field(min_length=1)]
    port: Annotated[int, Field(ge=1, le=65535)] = 9092
    keys: Keys = "here"

    @model_validator(mode="after")
    def _hosts_are_names_or_addresses(self) -> Self:
        for host in self.hosts:
            if not _is_host(host):
                raise ValueError(
                    f"coordinator.hosts: {host!r} is no host name and no address; "
                    "write fed.example.org, 192.0.2.7 or 2001:db8::7, without port"
                )
        return self


class AuthoritySection(Section):
    """The key authority.

    Attributes
    ----------
    keys : {"here", "enrolled"}
        Whether its kit is made here, or it makes its keys itself and sends a request.
    """

    keys: Keys = "here"


class FederationConfig(Section):
    """A federation, as its operator describes it.

    Attributes
    ----------
    name : str
        Lower-case letters, digits and hyphens.
    sites : list of str
        Sites whose kits are made here. Those that make their keys themselves need not be
        listed; they join by ``fedllm provision sign``.
    titles : mapping of str to str
        Names of sites for people, in any script, by the sites' names.
    min_cohort : int
        Smallest number of sites whose sum the key authority opens, in any run.
    validity_days : int
        How long the coordinator's certificate and a roster are valid.
    ca_validity_days : int
        How long the private CA is valid.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")]
    coordinator: CoordinatorSection
    authority: AuthoritySection = AuthoritySection()
    sites: tuple[str, ...] = ()
    titles: dict[str, str] = Field(default_factory=dict)
    min_cohort: Annotated[int, Field(ge=2)] = 2
    validity_days: Days = 397
    ca_validity_days: Days = 3650

    @model_validator(mode="after")
    def _sites_have_names(self) -> Self:
        for name in self.sites:
            if not is_site_name(name):
                raise ValueError(
                    f"sites: {name!r} cannot name a site; use lower-case letters, digits and "
                    f"inner hyphens, at most 63, and not {', '.join(ROLES)}; the name as people "
                    "write it goes under [titles]"
                )
        if len(set(self.sites)) != len(self.sites):
            twice = next(name for name in self.sites if self.sites.count(name) > 1)
            raise ValueError(f"sites: '{twice}' stands there twice")
        if self.validity_days > self.ca_validity_days:
            raise ValueError(
                f"validity_days = {self.validity_days} is longer than ca_validity_days = "
                f"{self.ca_validity_days}"
            )
        return self

    @field_validator("titles")
    @classmethod
    def _titles_can_be_told_apart(cls, titles: dict[str, str]) -> dict[str, str]:
        found = {name: normal(title) for name, title in titles.items()}
        wrong = [name for name in found if not is_site_name(name)]
        if wrong:
            raise ValueError(f"titles: {wrong[0]!r} is not the name of a site")
        if words := complaint(found):
            raise ValueError(f"titles: {words}")
        return found

    @property
    def address(self) -> str:
        """``host:port`` that goes into the roster."""
        host = self.coordinator.hosts[0]
        return f"{f'[{host}]' if ':' in host else host}:{self.coordinator.port}"


def _is_host(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        labels = text.split(".")
        return len(text) <= 253 and all(_LABEL.fullmatch(label) for label in labels)
    return True


def load_federation_config(path: Path) -> FederationConfig:
    """Read a federation's file.

    Raises
    ------
    ConfigError
        If the file is wrong: names the key, the reason and the nearest valid key.
    """
    return parse(FederationConfig, read_toml(path), str(path))
