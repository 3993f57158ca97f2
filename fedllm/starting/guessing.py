"""Which columns a task could read: by what they are called, and by what they hold."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from fedllm.config import Task
from fedllm.config.task import Kind, columns_read, learns_preferences, may_lack
from fedllm.data.spelling import read_aloud
from fedllm.errors import DataError
from fedllm.starting.profiles import Profile
from fedllm.visible import quoted

# A label that is taken without being called one comes back so often, of so many at most.
_RECORDS_A_LABEL, _MOST_LABELS = 5.0, 1000
_MOST_NUMBERS = 50
# A place of treatment, and no person: few of many records each.
_MOST_SITES, _RECORDS_A_SITE = 200, 10.0
_RECORDS_A_PERSON = 50.0
_ASKED = ("prompt", "context")
_SPELLED: Mapping[str, str] = {
    "text": "text texts note notes message body content sentence utterance query description "
    "comment report letter document review abstract complaint narrative nachricht befund brief "
    "freitext 文本 内容 正文 病历 描述 留言",
    "label": "label labels class category intent target topic tag sentiment department ward "
    "diagnosis outcome kategorie klasse abteilung diagnose ziel 标签 类别 意图 科室 分类",
    "spans": "spans span entities annotations tags",
    "prompt": "prompt question instruction input frage anfrage 问题 指令 提问",
    "response": "response answer output completion reply antwort 回答 答案 回复",
    "context": "context background passage kontext 背景",
    "chosen": "chosen preferred better accepted",
    "rejected": "rejected worse dispreferred",
    "answers": "answers responses candidates",
    "ranks": "ranks rank ranking",
    "unit": "patient patients person customer client user subject member employee insured unit "
    "patientin kunde kundin versicherte mitarbeiter mrn 患者 病人 客户 用户",
    "site": "site hospital bank clinic branch practice institution organisation organization "
    "company publisher klinik krankenhaus filiale standort praxis 医院 银行 机构 分行",
    # Beside the word for a person or a place, in the name of its column.
    "key": "id no nr num number key hash uuid code name pseudonym ref 编号 号",
}
_CALLED = {role: frozenset(words.split()) for role, words in _SPELLED.items()}
_OF_A_KEY = _CALLED["key"]
# The longest first, of which others may be a part.
_CHINESE = re.compile(
    "|".join(
        sorted(
            (word for words in _CALLED.values() for word in words if word > "\u2e80"),
            key=len,
            reverse=True,
        )
    )
)
_SHORT = frozenset({"name", "identifier", "whole number", "boolean", "text"})
_LONG = frozenset({"text", "spans", "texts", "numbers"})
_FITTING: Mapping[Kind, frozenset[str]] = {
    "text": frozenset({"text", "name"}),
    "name": _SHORT,
    "spans": frozenset({"spans"}),
    "texts": frozenset({"texts"}),
    "numbers": frozenset({"numbers"}),
}


@dataclass(frozen=True, slots=True)
class Guess:
    """What a source could be used for.

    Attributes
    ----------
    task : str
        As in a run's ``task``.
    columns : Mapping of str to str
        Roles that the task reads, with their columns; those that a source may lack only if it
        has them.
    unit, site : str, optional
        Columns of the person, and of the natural site.
    doubts : tuple of str
        What a person should look at; names columns and counts, no value.
    """

    task: Task
    columns: Mapping[str, str]
    unit: str | None
    site: str | None
    doubts: tuple[str, ...] = ()


def unit_of(row: Mapping[str, object], found: Guess) -> str | None:
    """Return the key of what is protected as one where that is more than a row.

    The person, or all rows with one prompt and context where preferences are learned.
    """
    if found.unit:
        return read_aloud(str(row.get(found.unit)))
    return prompt_of(row, found) if learns_preferences(found.task) else None


def prompt_of(row: Mapping[str, object], found: Guess) -> str | None:
    """Return prompt and context, white space aside; none in a task without prompts."""
    columns = [found.columns[role] for role in _ASKED if role in found.columns]
    if not columns:
        return None
    return json.dumps([" ".join(str(row.get(name) or "").split()) for name in columns])


def guess(
    profiles: Mapping[str, Profile],
    task: Task | None = None,
    given: Mapping[str, str] | None = None,
) -> Guess:
    """Guess a task and its columns.

    Parameters
    ----------
    profiles : mapping of str to Profile
        The source's columns.
    task : str, optional
        Where it is known.
    given : mapping of str to str
        Roles (and "unit", "site") whose columns are known.

    Raises
    ------
    DataError
        If no task, or not this one, could read the source.
    """
    known = dict(given or {})
    named = _key_column("unit", profiles, known.values())
    # Called a client, and one of a few: an application, or a company.
    few = named is not None and profiles[named].repeats > _RECORDS_A_PERSON
    unit = known.get("unit") or (None if few else named)
    site = known.get("site") or _site(profiles, {*known.values(), *filter(None, [unit])})
    taken = {column for column in (unit, site) if column}
    tasks = (task,) if task else _likely(profiles, known)
    lacking: list[str] = []
    for each in tasks:
        columns, lacking = _columns(each, profiles, known, taken)
        if not lacking:
            doubts = [*_doubts(profiles, columns, unit, taken)]
            if named and few and unit is None and named not in columns.values():
                doubts.append(
                    f"{quoted(named)} is called like a person, and has "
                    f"{profiles[named].distinct} values in {profiles[named].filled:,} rows, so "
                    f"that it was not taken for one: if it is, give --unit {named}"
                )
            return Guess(each, columns, unit, site, tuple(doubts))
    raise DataError(
        f"no column was found that could be the {' or the '.join(lacking)} of a task"
        if task is None
        else f"no column was found that could be the {' or the '.join(lacking)} of task = {task!r}",
        "name it: "
        + ", ".join(f"--{role} COLUMN" for role in lacking)
        + f"; columns there: {shown_columns(profiles)}",
    )


def shown_columns(profiles: Mapping[str, Profile]) -> str:
    """List columns with what they hold, for people."""
    return ", ".join(f"{quoted(name)} ({found.holds})" for name, found in profiles.items())


def called(column: str, role: str) -> bool:
    """Tell whether a column's name has the word for a role in it."""
    return bool(_words(column) & _CALLED[role])


def _words(column: str) -> set[str]:
    """Return the words of a column's name: ``patientId``, ``patient_id`` and ``PATIENT-ID``.

    Chinese has no spaces between them: there, every known word that is in it, and what is left.
    """
    text = unicodedata.normalize("NFKC", column)
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", text).casefold()
    text = _CHINESE.sub(r" \g<0> ", text)
    return set(re.split(r"[\W_\d]+", text)) - {""}


def _likely(profiles: Mapping[str, Profile], known: Collection[str]) -> tuple[Task, ...]:
    """Order the tasks by how much speaks for them, those that nothing speaks for last or not."""
    names = profiles.values()
    if "spans" in known or any(one.holds == "spans" for one in names):
        return ("token_classification", "classification", "causal")
    if {"chosen", "rejected", "answers", "ranks"} & set(known) or _has_preferences(profiles):
        return ("preference",)
    asks = all(_best(role, "text", profiles, (), called_so=True) for role in ("prompt", "response"))
    labelled = any(called(one.name, "label") and _could_be_label(one) for one in names)
    if {"prompt", "response"} & set(known) or (asks and not labelled and "label" not in known):
        return ("instruction",)
    return ("classification", "causal")


def _has_preferences(profiles: Mapping[str, Profile]) -> bool:
    def there(*roles: str) -> bool:
        return all(any(called(name, role) for name in profiles) for role in roles)

    return there("chosen", "rejected") or (
        there("answers", "ranks") and {"texts", "numbers"} <= {p.holds for p in profiles.values()}
    )


def _columns(
    task: Task, profiles: Mapping[str, Profile], known: Mapping[str, str], taken: set[str]
) -> tuple[dict[str, str], list[str]]:
    """Return the columns of a task's roles, and the roles that have none and need one."""
    found = {role: known[role] for role in columns_read(task) if role in known}
    optional, lacking = may_lack(task), []
    # What is called something is taken before what only looks so, and short names before texts.
    roles = sorted(columns_read(task).items(), key=lambda role: role[1] == "text")
    for role, kind in roles:
        if role in found:
            continue
        used = {*found.values(), *taken}
        column = _best(role, kind, profiles, used, called_so=role in optional or len(roles) > 2)
        if column is None and role not in optional and len(roles) <= 2:
            column = _best(role, kind, profiles, used)
        if column is not None:
            found[role] = column
        elif role not in optional:
            lacking.append(role)
    pairs = [("chosen", "rejected"), ("answers", "ranks")]
    if set(pairs[0]) <= optional:
        whole = [pair for pair in pairs if set(pair) <= set(found)]
        for pair in pairs:
            if pair not in whole[:1]:
                for role in pair:
                    found.pop(role, None)
        lacking += [] if whole else [" and ".join(pairs[0])]
    order = list(columns_read(task))
    return dict(sorted(found.items(), key=lambda item: order.index(item[0]))), lacking


def _best(
    role: str,
    kind: Kind,
    profiles: Mapping[str, Profile],
    used: Collection[str],
    called_so: bool = False,
) -> str | None:
    """Return the column that fits a role best; None where none fits at all."""
    fitting = [
        one
        for name, one in profiles.items()
        if name not in used
        and one.holds in _FITTING[kind]
        and (called_so is False or called(name, role))
    ]
    if role == "label":
        # Else one that is called so, for which it is said why it cannot be one.
        fitting = [one for one in fitting if _could_be_label(one)] or [
            one
            for name, one in profiles.items()
            if name not in used and called(name, role) and one.holds not in _LONG
        ]
    elif kind == "text" and not called_so:
        fitting = [one for one in fitting if one.holds == "text" or called(one.name, role)]
    if not fitting:
        return None
    return max(fitting, key=lambda one: _fitness(role, kind, one)).name


def _fitness(role: str, kind: Kind, one: Profile) -> tuple[bool, bool, float]:
    if kind == "text":
        return one.holds == "text", called(one.name, role), one.words
    # Of columns that nothing is known of, words say more than codes.
    return called(one.name, role), one.holds == "name", -float(one.distinct)


def _could_be_label(one: Profile) -> bool:
    if one.holds not in _SHORT or one.distinct < 2 or one.distinct > _MOST_LABELS:
        return False
    if called(one.name, "label"):
        return one.repeats >= 2
    few = one.distinct <= _MOST_NUMBERS or one.holds != "whole number"
    key = one.holds in ("identifier", "whole number") and _words(one.name) <= _OF_A_KEY
    return few and not key and one.repeats >= _RECORDS_A_LABEL


def _key_column(role: str, profiles: Mapping[str, Profile], used: Collection[str]) -> str | None:
    """Return the column whose name is the word for a role, with nothing but words of a key."""
    for name, one in profiles.items():
        words = _words(name)
        named = words & _CALLED[role] and words <= _CALLED[role] | _OF_A_KEY
        if named and name not in used and one.holds in _SHORT - {"boolean"} and one.distinct > 1:
            return name
    return None


def _site(profiles: Mapping[str, Profile], used: Collection[str]) -> str | None:
    column = _key_column("site", profiles, used)
    if column is None:
        return None
    found = profiles[column]
    few = 2 <= found.distinct <= _MOST_SITES and not found.empty
    return column if few and found.repeats >= _RECORDS_A_SITE else None


def _doubts(
    profiles: Mapping[str, Profile], columns: Mapping[str, str], unit: str | None, taken: set[str]
) -> Sequence[str]:
    told = []
    if "label" in columns and not called(columns["label"], "label"):
        told.append(
            f"nothing in its name says that {quoted(columns['label'])} is the label: it is the "
            "column with few values that come back; name another with --label"
        )
    if unit is None:
        for name, one in profiles.items():
            free = name not in taken and name not in columns.values()
            if free and one.holds == "identifier" and one.repeats >= 1.2:
                told.append(
                    f"{quoted(name)} comes back {one.repeats:.1f} times and looks like a number of "
                    f"somebody: if it names persons, protect each with all records by --unit "
                    f"{name}"
                )
    return told
