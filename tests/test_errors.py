"""Errors say first what is wrong, then what to do; never the other way round."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# How what somebody should do begins. No message begins so.
ORDERS = (
    " adapt add allow ask audit begin believe change check choose come compare copy correct "
    "count delete do e.g. enroll fetch finish free get give go install join keep leave let "
    "list load look lower make merge move name open pack pip plan put quantise raise read "
    "remind remove rename renew repeat reserve restart restore resume run run: save see send "
    "set start stop stop, take try type update use wait watch write "
)
# How the other remedies begin: who else can do something, how it came about, what is allowed.
EXPLANATIONS = (
    "2 GiB leave",
    "a program that is not fedllm",
    "a site used another",
    "active sites:",
    "an older roster may",
    "both sides must run",
    "delta is in",
    "each share needs",
    "epsilons must be",
    "every party makes",
    "fedllm ",
    "for example",
    "heads of width",
    "if ",
    "it was altered",
    "its fields are:",
    "its results are",
    "known types:",
    "little is left",
    "nothing has to be done",
    "nothing to do here",
    "only the federation's",
    "somebody ",
    "the account goes on",
    "the base model does",
    "the coordinator must",
    "the coordinator raises",
    "the coordinator sets",
    "the file may be",
    "the last good",
    "the message was",
    "the operator's folder was",
    "the party must",
    "the program that",
    "the run has diverged",
    "the site restores",
    "the site takes",
    "the site's owner",
    "the {}'s name is",
    "what the run may",
    "{}; or {}",
    "{}; then go on",
)


def raised() -> Iterator[tuple[str, str | None, str | None]]:
    """Give the place of each error with a remedy, its message and its remedy where written out."""
    for folder in ("fedllm", "clients", "server"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text())
            known = {
                target.id: text
                for node in tree.body
                if isinstance(node, ast.Assign) and (text := written(node.value, {})) is not None
                for target in node.targets
                if isinstance(target, ast.Name)
            }
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and is_error(node.func) and len(node.args) == 2:
                    message, remedy = (written(part, known) for part in node.args)
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", message, remedy


def is_error(function: ast.expr) -> bool:
    return isinstance(function, ast.Name) and function.id.endswith(("Error", "Refusal"))


def written(node: ast.expr, known: dict[str, str]) -> str | None:
    """Return a text of the source, with {} for what is put in; None for anything else."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values
        )
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    return None


def orders(text: str) -> bool:
    return f" {text.split(maxsplit=1)[0]} " in ORDERS


def test_a_message_is_no_order_and_most_remedies_are():
    found = list(raised())
    messages = {place: text for place, text, _ in found if text is not None}
    remedies = [text for *_, text in found if text is not None]
    assert len(messages) > 250
    wrong = [place for place, text in messages.items() if orders(text)]
    assert not wrong
    assert sum(orders(text) for text in remedies) > len(remedies) * 0.8


def test_every_remedy_says_what_to_do_or_explains():
    """Also where a remedy is no order, a message in its place would be noticed."""
    messages, remedies = {}, {}
    for place, message, remedy in raised():
        if not place.startswith("fedllm/audit/selftest/leaks.py"):
            messages[place], remedies[place] = message, remedy
    explaining = [place for place, text in remedies.items() if text and not orders(text)]
    assert not [place for place in explaining if not remedies[place].startswith(EXPLANATIONS)]
    used = {
        each for each in EXPLANATIONS for place in explaining if remedies[place].startswith(each)
    }
    assert used == set(EXPLANATIONS)
    assert not [place for place, text in messages.items() if (text or "").startswith(EXPLANATIONS)]
