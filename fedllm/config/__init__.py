"""What a run asks for (`RunConfig`) and what a site allows (`SitePolicy`).

Both are read from TOML, frozen, and strict: an unknown key or an impossible value is
refused with the key, the reason and the nearest valid key.
"""

from fedllm.config.data import DataSection
from fedllm.config.encryption import EncryptionSection
from fedllm.config.engine import EngineSection
from fedllm.config.evaluation import EvaluationSection
from fedllm.config.files import load_run_config, load_site_policy, with_absolute_locations
from fedllm.config.locations import resolve_location
from fedllm.config.model import AdapterKind, LoraSection, ModelSection, Precision, Quantization
from fedllm.config.overrides import apply_overrides
from fedllm.config.packages import package_folder
from fedllm.config.parsing import parse
from fedllm.config.preference import Objective, PreferenceSection
from fedllm.config.privacy import PrivacySection
from fedllm.config.rounds import RoundsSection
from fedllm.config.run import RunConfig
from fedllm.config.section import PositiveFloat, PositiveInt, Section, Task
from fedllm.config.site_policy import AllowSection, BudgetSection, SiteModelSection, SitePolicy
from fedllm.config.toml import parse_toml, read_toml, to_toml
from fedllm.config.training import TrainingSection

__all__ = [
    "AdapterKind",
    "AllowSection",
    "BudgetSection",
    "DataSection",
    "EncryptionSection",
    "EngineSection",
    "EvaluationSection",
    "LoraSection",
    "ModelSection",
    "Objective",
    "PositiveFloat",
    "PositiveInt",
    "Precision",
    "PreferenceSection",
    "PrivacySection",
    "Quantization",
    "RoundsSection",
    "RunConfig",
    "Section",
    "SiteModelSection",
    "SitePolicy",
    "Task",
    "TrainingSection",
    "apply_overrides",
    "load_run_config",
    "load_site_policy",
    "package_folder",
    "parse",
    "parse_toml",
    "read_toml",
    "resolve_location",
    "to_toml",
    "with_absolute_locations",
]
