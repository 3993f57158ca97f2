"""What a site allows, whatever a run asks for."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedllm.config.data import DataSection
from fedllm.config.section import Device, PositiveFloat, Section, Task


class BudgetSection(Section):
    """The most that a site's account may ever spend.

    Attributes
    ----------
    epsilon : float
        Ceiling over all runs, files, queries and tasks, for the life of the account.
    delta : float
        The delta at which that is counted.
    colluders_epsilon : float, optional
        The same for what everyone else could learn together, who then know all noise but
        the site's own share (distributed noise). Left out, it is written down but not limited.
        `fedllm privacy plan RUN.toml` shows what a run takes; a ceiling a little above the sum of
        the runs that are wanted keeps others out.
    account : str, optional
        The site's word that nobody whom ``data.unit`` names in this source is in a source of
        another account; such accounts have budgets of their own. Nothing checks it. Left out,
        the site has one account, which every declared one shares.
    """

    epsilon: PositiveFloat = 8.0
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    colluders_epsilon: PositiveFloat | None = None
    # Of one spelling alone, so that no name looks like another account's.
    account: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")] | None = None

    @model_validator(mode="after")
    def _colluders_see_no_less(self) -> Self:
        if self.colluders_epsilon is not None and self.colluders_epsilon < self.epsilon:
            raise ValueError(
                f"colluders_epsilon = {self.colluders_epsilon:g} must not be smaller than "
                f"epsilon = {self.epsilon:g}: they see more"
            )
        return self


class AllowSection(Section):
    """What the site takes part in.

    Attributes
    ----------
    tasks : list of str
        Tasks that may be trained.
    models : list of str
        SHA-256 fingerprints of base models, as ``fedllm client check`` prints them; empty
        allows any.
    min_cohort : int
        Smallest number of sites whose sum may be opened.
    colluders : int
        So many other sites may be in league with the coordinator and the key authority: two
        more than them have to be in every sum that may be opened, and shared noise has to count
        on them (``privacy.colluders``).
    colluding_share : float
        The same in cohorts of more than 200 sites, as a part of the cohort: a run whose masks
        allow for fewer (``encryption.colluding_share``; where all share masks with all,
        ``rounds.min_sites`` - 2) is refused. What counts is the larger of both keys.
    lost_share : float
        In such cohorts, most that may be missing of a sum (``encryption.lost_share``): the more
        may be, the fewer of a site's neighbours have to be in a sum that it helps to open.
    encryption : {"required", "optional"}
        Whether a run without encryption is refused.
    masks : {"required", "optional"}
        Whether an encrypted run without masks is refused: its coordinator can open single
        updates. Shared noise without masks is refused whatever stands here.
    non_private : bool
        Whether a run without differential privacy is allowed.
    unit : {"record", "person"}
        Weakest unit of privacy that is accepted.
    parts : list of "label" and "group"
        By what a run may tell quality at the sites (``evaluation.parts``); a run that asks for
        another is refused. Groups are told only of records whose column ``data.group`` names.
    """

    tasks: tuple[Task, ...] = (
        "classification",
        "instruction",
        "causal",
        "token_classification",
        "preference",
    )
    models: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], ...] = ()
    min_cohort: Annotated[int, Field(ge=1)] = 2
    colluders: Annotated[int, Field(ge=0)] = 0
    colluding_share: Annotated[float, Field(ge=0, le=0.5)] = 0.2
    lost_share: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    encryption: Literal["required", "optional"] = "required"
    masks: Literal["required", "optional"] = "required"
    non_private: bool = False
    unit: Literal["record", "person"] = "record"
    parts: tuple[Literal["label", "group"], ...] = ("label", "group")


class SiteModelSection(Section):
    """The site's own copy of the base model.

    Attributes
    ----------
    path : str
        As ``model.path`` of a run; the run is refused when its fingerprint is not the run's.
    device : str, optional
        Where the site trains: "cpu", "cuda" or "cuda:1" (a GPU), or "auto", which takes a GPU if
        there is one; the processor when left out. Whatever a run asks for, and told to nobody.
    """

    path: str
    device: Device | None = None


class SitePolicy(Section):
    """What one site allows, whatever a run asks for; never sent anywhere.

    ``data`` is the site's own source and column mapping and replaces the run's, ``model`` its
    own copy of the base model; a deployed site needs both.
    """

    model: SiteModelSection | None = None
    data: DataSection | None = None
    budget: BudgetSection = BudgetSection()
    allow: AllowSection = AllowSection()

    @model_validator(mode="after")
    def _account_names_its_persons(self) -> Self:
        if self.budget.account is not None and (self.data is None or self.data.unit is None):
            raise ValueError(
                "budget.account says that no person is in a source of another account: name the "
                "column of the persons (or of a row's number, where rows are nobody's) in data.unit"
            )
        return self
