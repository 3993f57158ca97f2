"""``fedllm config``: the files that people write, checked and explained."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
import typer

from fedllm.commands import options
from fedllm.commands.help import CommandGroup
from fedllm.errors import ConfigError
from fedllm.visible import visible

if TYPE_CHECKING:
    from fedllm.reference.checking import Checked, Finding
    from fedllm.reference.explaining import Explanation
    from fedllm.reference.keys import Key
    from fedllm.reference.kinds import FileKind

app = CommandGroup(
    help="Files of settings: check one, explain a key.",
    no_args_is_help=True,
)
_KINDS = ("run", "site", "federation", "pretraining", "alignment")
KIND = typer.Option(
    None,
    "--kind",
    help="Which kind of file is meant; found out when left out.",
    click_type=click.Choice(_KINDS),
)


@app.command()
def check(
    file: Path = typer.Argument(metavar="FILE.toml", help="The file."),
    kind: str | None = KIND,
    json_output: bool = options.JSON,
) -> None:
    """Show all that is wrong with a file, each with its line.

    Ends with 2 if anything is, and says what to do. Nothing that the file names is read: files
    that are missing on this machine are mentioned, and are no mistake.
    """
    from fedllm.reference.checking import check_file

    found = check_file(file, _kind(kind))
    if json_output:
        print(json.dumps({"file": str(file), **asdict(found)}, indent=2))
    else:
        _show(file, found)
    if found.errors:
        raise typer.Exit(ConfigError.exit_code)


def _show(file: Path, found: Checked) -> None:
    for one in found.errors:
        print(_told(file, one, "error"))
    for one in found.notes:
        print(_told(file, one, "note"))
    words = f"{visible(str(file))}: " + (_words(found.kind) if found.kind else "not TOML")
    count = len(found.errors)
    wrong = f"{count} error{'s' if count > 1 else ''}" if count else "nothing wrong"
    print(f"{words}, {wrong}")


def _told(file: Path, one: Finding, what: str) -> str:
    where = visible(str(file)) + (f":{one.line}" if one.line else "")
    remedy = f"\n    {visible(one.remedy)}" if one.remedy else ""
    return f"{where}: {what}: {visible(one.words, keep=chr(10))}{remedy}"


@app.command()
def explain(
    key: str = typer.Argument(
        metavar="KEY", help="A key such as lora.method, one without its section, or a section."
    ),
    kind: str | None = KIND,
    json_output: bool = options.JSON,
) -> None:
    """Say what a key means, with its default and an example.

    A spelling that is nearly right is taken for the nearest key.
    """
    from fedllm.reference.explaining import explained

    found = explained(key, _kind(kind))
    if json_output:
        print(json.dumps(_plain(found), indent=2, ensure_ascii=False))
        return
    if found.taken_for.lower() != key.lower():
        print(f"there is no key '{visible(key)}'; this is '{found.taken_for}'", file=sys.stderr)
    parts = [_key_words(one) for one in found.keys]
    parts += [
        "\n".join(
            [
                f"[{section.name}] of {_words(section.kind)}",
                _wrapped(section.meaning),
                *(f"  {one.path:<32} {_default(one)}" for one in section.keys),
            ]
        )
        for section in found.sections
    ]
    print("\n\n".join(parts))


def _key_words(key: Key) -> str:
    from fedllm.reference.explaining import recipe_words

    rows = {"may be": key.may_be, "default": _default(key), "recipe": recipe_words(key)}
    if key.example:
        rows["example"] = _example(key)
    if key.kind == "run":
        rows["once"] = f"--set {key.path}={key.example.strip(chr(34)) or 'VALUE'}"
    told = [_row(name, words) for name, words in rows.items() if words]
    return "\n".join([f"{key.path}, of {_words(key.kind)}", _wrapped(key.meaning), *told])


def _row(name: str, words: str) -> str:
    import textwrap

    return textwrap.fill(
        words,
        78,
        initial_indent=f"  {name:<9}",
        subsequent_indent=" " * 11,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _example(key: Key) -> str:
    line = f"{key.name} = {key.example}"
    return f"[{key.section}] {line}" if key.section else line


def _default(key: Key) -> str:
    if key.required:
        return "required"
    return (key.default or "none") + (", or the recipe's" if key.by_recipe else "")


def _wrapped(text: str) -> str:
    import textwrap

    return textwrap.fill(text, 78, initial_indent="  ", subsequent_indent="  ")


def _plain(found: Explanation) -> dict[str, object]:
    from fedllm.reference.explaining import recipe_values

    values = asdict(found)
    for key, plain in zip(found.keys, values["keys"], strict=True):
        plain["path"] = key.path
        if key.by_recipe:
            plain["recipe"] = recipe_values().get(key.path, {})
    return values


@app.command()
def schema(
    kind: str = typer.Argument(
        metavar="KIND", help=f"One of {', '.join(_KINDS)}.", click_type=click.Choice(_KINDS)
    ),
    out: Path | None = typer.Option(
        None, metavar="FILE", help="Write a copy, to lie beside the files that name it."
    ),
    json_output: bool = typer.Option(False, "--json", help="Print the schema itself."),
) -> None:
    """Print the line that lets an editor check a file.

    It completes keys there too. The line goes to the head of the file. Taplo and editors built
    on it (Even Better TOML) read it.
    """
    from fedllm.files import given_path, write_bytes
    from fedllm.reference.kinds import kind_called
    from fedllm.reference.schema import installed_schema, schema_file

    found = kind_called(kind)
    if out is not None:
        with given_path():
            write_bytes(out, installed_schema(found).encode())
    if json_output:
        print(installed_schema(found), end="")
    elif out is not None:
        print(f"#:schema ./{out.name}")
    else:
        print(f"#:schema {schema_file(found).as_uri()}")


def _kind(name: str | None) -> FileKind | None:
    from fedllm.reference.kinds import kind_called

    return None if name is None else kind_called(name)


def _words(kind: str) -> str:
    from fedllm.reference.kinds import kind_called

    return kind_called(kind).words
