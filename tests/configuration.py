"""Write ``docs/configuration.md`` from the models that read the files: ``make reference``.

Meanings come from docstrings, the rest from the fields themselves. `test_configuration.py`
compares the page with what this writes.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fedllm.config import RunConfig, SitePolicy
from fedllm.config.alignment import AlignConfig
from fedllm.config.recipes import FILLED
from fedllm.config.wording import allowed
from fedllm.identity.config import FederationConfig
from fedllm.pretraining.config import PretrainConfig

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"

START = """\
# Configuration

Every key of the five kinds of files. This page is made from the code that reads them
(`make reference`), and a test holds it to that.

All are [TOML](https://toml.io): `[section]` begins a section, texts stand in quotation marks,
numbers have a decimal point and no comma. A key that is not known, or a value that is not allowed,
is refused with the nearest one that is. Paths count from the folder of the file that names them;
`${NAME}` and `${NAME:-otherwise}` stand for a variable of the environment. Commands that read a
run, a pretraining configuration or an alignment take `--set KEY=VALUE` too
(`--set privacy.epsilon=3`).

"Required" keys have no default. Where the default is "none", leaving the key out is meant. Where it
is "or the recipe's", [recipes.md](recipes.md#defaults) says what a run gets that says nothing else;
`run.toml` in the run's folder has it in numbers.
"""

KINDS: tuple[tuple[str, str, type[BaseModel]], ...] = (
    (
        "A run",
        "`RUN.toml`, for `fedllm simulate` and `fedllm run`. Examples: `examples/*/*.toml`.",
        RunConfig,
    ),
    (
        "A site's policy",
        "`site.toml`, for `fedllm client check` and `fedllm client start`. A deployed site "
        "needs `[model]` and `[data]`. Never sent anywhere. "
        "Examples: [`examples/deployment/site.toml`](../examples/deployment/site.toml), "
        "[`examples/site.toml`](../examples/site.toml).",
        SitePolicy,
    ),
    (
        "A federation",
        "For `fedllm provision`. Example: "
        "[`examples/deployment/federation.toml`](../examples/deployment/federation.toml).",
        FederationConfig,
    ),
    (
        "Pretraining",
        "For `fedllm pretrain`; see [pretraining.md](pretraining.md). "
        "Examples: `examples/pretraining/*.toml`.",
        PretrainConfig,
    ),
    (
        "An alignment",
        "For `fedllm align ppo` and `fedllm align grpo`; see [alignment.md](alignment.md). "
        "Examples: `examples/preferences/align_*.toml`.",
        AlignConfig,
    ),
)


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """Return the section that a field holds, if it holds one."""
    for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
        if inspect.isclass(kind) and issubclass(kind, BaseModel):
            return kind
    return None


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """Return what the docstring says of each of a section's keys."""
    _, _, listed = (model.__doc__ or "").partition("----------\n")
    entries = re.split(r"^ {4}(?=\S)", listed, flags=re.MULTILINE)[1:]
    found: dict[str, str] = {}
    for entry in entries:
        names, _, words = entry.partition("\n")
        for name in names.partition(" : ")[0].split(", "):
            found[name] = " ".join(words.split())
    return found


def default(field: FieldInfo) -> str:
    """Return a field's default, as TOML writes it."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f'`"{value}"`'
    if isinstance(value, tuple):
        return "`[" + ", ".join(f'"{one}"' for one in value) + "]`"
    return "`{}`" if isinstance(value, dict) else f"`{value}`"


def table(model: type[BaseModel], whole: type[BaseModel], section: str = "") -> Iterator[str]:
    """Return the lines of a section's table."""
    said = meanings(model)
    yield "| key | default | may be | meaning |"
    yield "|---|---|---|---|"
    for name, field in model.model_fields.items():
        if section_of(field) is None:
            words = allowed(whole, [section, name] if section else [name])
            in_toml = re.sub(r"'(\w+)'", r'"\1"', words)
            shown = default(field)
            if whole is RunConfig and f"{section}.{name}" in FILLED:
                shown += ", or [the recipe's](recipes.md#defaults)"
            cells = (f"`{name}`", shown, in_toml, said.get(name, ""))
            yield "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def introduction(model: type[BaseModel]) -> str:
    """Return what a section's docstring says before it lists keys."""
    words = (model.__doc__ or "").partition("    Attributes\n")[0].partition("; see `")[0]
    return " ".join(words.split()).rstrip(".") + "."


def page() -> str:
    """Return the whole page."""
    lines = [START]
    told: dict[type[BaseModel], str] = {}
    for title, use, model in KINDS:
        lines += [f"## {title}", "", use, ""]
        if any(section_of(field) is None for field in model.model_fields.values()):
            lines += ["Before any section:", "", *table(model, model), ""]
        for name, field in model.model_fields.items():
            section = section_of(field)
            if section is None:
                continue
            needed = ", required" if field.is_required() else ""
            lines += [f"### `[{name}]` of {title[0].lower()}{title[1:]}{needed}", ""]
            if section in told:
                lines += [f"The same keys as `[{name}]` of {told[section]}.", ""]
                continue
            told[section] = title[0].lower() + title[1:]
            lines += [introduction(section), "", *table(section, model, name), ""]
    return "\n".join(lines).replace("``", "`")


if __name__ == "__main__":
    PAGE.write_text(page())
