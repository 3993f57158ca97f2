"""How a site stands: all that its page and its status say, gathered in one look."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedllm.canonical import sha256_hex
from fedllm.config import SitePolicy, parse
from fedllm.config.toml import read_toml
from fedllm.dashboard.files import Kept
from fedllm.errors import ConfigError, FedllmError
from fedllm.federation.site.brake import Brake, Held
from fedllm.federation.site.memory import SiteMemory
from fedllm.overview.budget import Budget, BudgetReader
from fedllm.overview.kit import SiteKit
from fedllm.overview.reading import Running, Service, read_activity, read_running, read_service
from fedllm.overview.sent import Traffic, traffic_of


@dataclass(frozen=True)
class Trouble:
    """Something that could not be read, and what to do."""

    what: str
    remedy: str


@dataclass(frozen=True)
class Standing:
    """How a site stands.

    Attributes
    ----------
    kit : SiteKit
        Whose it is.
    service : Service
        What its service says of itself.
    running : Running, optional
        The round that it is in.
    paused, ending : Held, optional
        What its people said.
    policy_file : Path
        Where its policy is.
    policy : SitePolicy, optional
        As it stands in the file now.
    changed : bool
        Whether the file is another one than the service goes by.
    budget : Budget, optional
        None where there is no ledger yet, or it does not hold.
    traffic : Traffic
        What it sent and refused.
    troubles : tuple of Trouble
        What could not be read.
    """

    kit: SiteKit
    service: Service
    running: Running | None
    paused: Held | None
    ending: Held | None
    policy_file: Path
    policy: SitePolicy | None
    changed: bool
    budget: Budget | None
    traffic: Traffic
    troubles: tuple[Trouble, ...]


class Look:
    """Looks at a site, again and again.

    Parameters
    ----------
    kit : SiteKit
        Whose.
    policy : Path, optional
        Its policy; by default the one that its service goes by.

    Raises
    ------
    ConfigError
        If no policy is named, and no service was ever started.
    """

    def __init__(self, kit: SiteKit, policy: Path | None) -> None:
        self.kit = kit
        self.brake = Brake(kit.state)
        known = read_service(kit.state).policy
        if policy is None and not known:
            raise ConfigError(
                f"no service was ever started with {kit.folder}, so its policy is not known",
                "name it: --policy site.toml",
            )
        self.policy_file = (policy or Path(known)).absolute()
        self.ledger = kit.state / "ledger.sqlite"
        self._budget = BudgetReader(self.ledger, kit.public_key)
        self._memory = SiteMemory(kit.state / "memory.json")
        self._traffic = Kept(
            kit.state / "activity.jsonl", lambda path: traffic_of(read_activity(path))
        )

    def __call__(self) -> Standing:
        """Say how the site stands now."""
        troubles: list[Trouble] = []
        self._traffic.look()
        service = read_service(self.kit.state)
        policy, digest = self._policy(troubles)
        changed = service.runs and bool(digest) and digest != service.policy_sha256
        return Standing(
            self.kit,
            service,
            read_running(self.kit.state, service),
            self.brake.paused,
            self.brake.ending,
            self.policy_file,
            policy,
            changed and bool(service.policy_sha256),
            self._spent(policy, troubles),
            self._traffic.value or Traffic((), ()),
            tuple(troubles),
        )

    def _policy(self, troubles: list[Trouble]) -> tuple[SitePolicy | None, str]:
        try:
            # Without its variables: the password of a database is none of a page's business.
            policy = parse(SitePolicy, read_toml(self.policy_file), str(self.policy_file))
            return policy, sha256_hex(self.policy_file.read_bytes())
        except FedllmError as error:
            troubles.append(Trouble(error.message, error.remedy))
        except OSError as error:
            troubles.append(Trouble(f"{self.policy_file}: {error.strerror}", "let its owner see"))
        return None, ""

    def _spent(self, policy: SitePolicy | None, troubles: list[Trouble]) -> Budget | None:
        if policy is None:
            return None
        try:
            if not (self.ledger.exists() or self._memory.used()):
                return None
            # First what is remembered: the ledger may grow meanwhile.
            anchor = self._memory.head()
            return self._budget.read(policy.budget, anchor)
        except FedllmError as error:
            troubles.append(Trouble(error.message, error.remedy))
            return None
