"""The page of all keys, ``docs/configuration.md``: written by ``make reference``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pydantic import BaseModel

from fedllm.reference.keys import Key, introduction, keys_of, section_of
from fedllm.reference.kinds import FILE_KINDS

START = """\
# Configuration

Every key of the five kinds of files. This page is made from the code that reads them
(`make reference`), and a test holds it to that. On a terminal `fedllm config explain KEY` says the
same of one key, and `fedllm config check FILE` finds what is wrong with a file.

All are [TOML](https://toml.io): `[section]` begins a section, texts stand in quotation marks,
numbers have a decimal point and no comma. A key that is not known, or a value that is not allowed,
is refused with the nearest one that is. Paths count from the folder of the file that names them;
`${NAME}` and `${NAME:-otherwise}` stand for a variable of the environment. Commands that read a
run, a pretraining configuration or an alignment take `--set KEY=VALUE` too
(`--set privacy.epsilon=3`).

"Required" keys have no default. Where the default is "none", leaving the key out is meant. Where it
is "or the recipe's", [recipes.md](recipes.md#defaults) says what a run gets that says nothing else;
`run.toml` in the run's folder has it in numbers.

Editors that know JSON schemas for TOML (Taplo, Even Better TOML) complete keys and mark mistakes
while you type. They are part of the package: `fedllm config schema run` prints the line that goes
to the head of a file, and `--out run.schema.json` makes a copy to lie beside it.
"""


def page() -> str:
    """Return the whole page."""
    lines = [START]
    told: dict[type[BaseModel], str] = {}
    for kind in FILE_KINDS:
        lines += [f"## {kind.title}", "", kind.use, ""]
        keys = keys_of(kind)
        if any(not key.section for key in keys):
            lines += ["Before any section:", "", *table(key for key in keys if not key.section), ""]
        for name, field in kind.model.model_fields.items():
            section = section_of(field)
            if section is None:
                continue
            needed = ", required" if field.is_required() else ""
            lines += [f"### `[{name}]` of {kind.words}{needed}", ""]
            if section in told:
                lines += [f"The same keys as `[{name}]` of {told[section]}.", ""]
                continue
            told[section] = kind.words
            inside = (key for key in keys if key.section == name)
            lines += [introduction(section), "", *table(inside), ""]
    return "\n".join(lines)


def table(keys: Iterable[Key]) -> Iterator[str]:
    """Yield the lines of a section's table."""
    yield "| key | default | may be | meaning |"
    yield "|---|---|---|---|"
    for key in keys:
        cells = (f"`{key.name}`", shown_default(key), key.may_be, meaning_with_example(key))
        yield "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def shown_default(key: Key) -> str:
    """Return what stands in the column of defaults."""
    if key.required:
        return "required"
    shown = f"`{key.default}`" if key.default else "none"
    return shown + (", or [the recipe's](recipes.md#defaults)" if key.by_recipe else "")


def meaning_with_example(key: Key) -> str:
    """Return what a key means, and an example where its default is none."""
    if key.example == key.default:
        return key.meaning
    return f"{key.meaning} Example: `{key.name} = {key.example}`."
