"""The model card: what a run's model is, what it may be used for, and what it was proven to keep.

In the Hugging Face Hub's format. Every value comes from the run folder and the base's; what they do
not say is said to be unknown. Words of others, such as names of labels and sites, are hostile
input: they stand in code spans or quoted YAML.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedllm import __version__
from fedllm.audit.attacks.audited import Audited
from fedllm.audit.report.audits import AuditParts
from fedllm.audit.report.numbers import number
from fedllm.audit.report.page import read_texts
from fedllm.audit.report.run_parts import RunParts
from fedllm.canonical import sha256_hex
from fedllm.config.card import CardSection
from fedllm.config.task import pools_text, trains_a_head
from fedllm.exporting import aligned
from fedllm.exporting.markdown import cell, quoted, span
from fedllm.files import write_bytes
from fedllm.mechanisms import mechanism_of
from fedllm.privacy.accounting.words import ADJACENCY, epsilon_text
from fedllm.privacy.ledger.entries import Head
from fedllm.privacy.ledger.heads import read_heads
from fedllm.runs.lineage import ancestors, names, spent_together
from fedllm.runs.names import HEADS, REPORT
from fedllm.runs.record import RunFolder

CARD = "README.md"
UNKNOWN = "unknown"
_MOST_ROWS = 40


@dataclass(frozen=True, slots=True)
class Handed:
    """What is handed over with a card.

    Attributes
    ----------
    library : str
        The Hub's word for what loads it.
    what : str
        What lies in the folder, in a sentence.
    base_name : str
        What others find the base model by.
    repository : str, optional
        Where the base model is on a hub.
    licence : str
        Of the base model, in the words of its folder; empty where it says nothing.
    script : str
        What uses it without fedllm; empty where the format has tools of its own.
    notes : sequence of str
        What else whoever uses it should know.
    smaller : bool
        Whether it was made smaller after the run measured and audited its model.
    """

    library: str
    what: str
    base_name: str
    repository: str | None
    licence: str
    script: str
    notes: Sequence[str] = field(default_factory=tuple)
    smaller: bool = False


def write_card(folder: Path, run: RunFolder, handed: Handed) -> Path:
    """Write the card of a run's model into the folder that holds it.

    Raises
    ------
    ConfigError
        If an audit's result in the run folder is damaged.
    StorageError
        If the disk is full.
    """
    path = folder / CARD
    write_bytes(path, card(run, handed).encode())
    return path


def card(run: RunFolder, handed: Handed) -> str:
    """Return the card of a run's model."""
    said = run.config.card or CardSection()
    data, quality, privacy, audits, ledgers = _who, _quality, _privacy, _audits, _ledgers
    if aligned.is_aligned(run):
        data, quality, privacy = aligned.data, aligned.quality, aligned.privacy
        audits, ledgers = aligned.audits, aligned.ledgers
    parts = (
        _head(run, handed, said),
        [f"# {run.config.name}", "", _what(run, handed)],
        list(handed.notes),
        ["## Use", "", _said(said.intended_use, "what the model is for", "intended_use")],
        _code(run, handed),
        ["## Base model", "", *_base(run, handed)],
        ["## Data", "", _said(said.data, "what the records are", "data"), "", *data(run)],
        ["## Quality", "", *_before_smaller(handed, "Measured"), *quality(run)],
        ["## Privacy", "", *privacy(run)],
        ["## Audits", "", *_before_smaller(handed, "Attacked"), *audits(run)],
        ["## Ledgers of the sites", "", *ledgers(run)],
        ["## Origin", "", *_origin(run, said)],
    )
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _head(run: RunFolder, handed: Handed, said: CardSection) -> list[str]:
    tags = ["fedllm", "federated-learning"]
    if aligned.is_bounded(run) if aligned.is_aligned(run) else run.config.private:
        tags.append("differential-privacy")
    if run.config.lora.rank and not run.config.lora.trains_base:
        tags.append("lora")
    values: dict[str, Any] = {"library_name": handed.library, "pipeline_tag": _pipeline(run)}
    if handed.repository:
        values["base_model"] = handed.repository
    if said.licence:
        values["license"] = said.licence
    # In YAML a value as in JSON is one.
    return ["---", *(f"{k}: {json.dumps(v)}" for k, v in (values | {"tags": tags}).items()), "---"]


def _pipeline(run: RunFolder) -> str:
    if pools_text(run.config.task):
        return "text-classification"
    if run.config.preferences is not None:
        return "text-ranking" if run.config.trains_a_head else "text-generation"
    return "token-classification" if trains_a_head(run.config.task) else "text-generation"


def _what(run: RunFolder, handed: Handed) -> str:
    if aligned.is_aligned(run):
        return f"{handed.what} {aligned.what(run)}"
    task = read_texts("en")["task"][run.config.task]
    where = (
        "in a simulation: one machine had all records"
        if run.simulated
        else "and no record left the site that owns it"
    )
    return (
        f"{handed.what} Made by fedllm: a shared language model was taught to {task} by federated "
        f"training, {where}."
    )


def _said(words: str | None, what: str, key: str) -> str:
    if words:
        return f"The coordinator says:\n\n{quoted(words)}"
    return f"{UNKNOWN.capitalize()}: the coordinator did not say {what} (`card.{key}` of run.toml)."


def _code(run: RunFolder, handed: Handed) -> list[str]:
    if not handed.script:
        return _commands(run)
    needs = "torch, transformers, safetensors and, for an adapter, peft"
    if handed.library == "onnx":
        needs = "numpy, onnxruntime and tokenizers"
    if handed.library == "gguf":
        needs = "llama-cpp-python"
    intro = f"The script belongs into this folder. It needs {needs}; and no fedllm."
    return [intro, "", "```python", handed.script.rstrip("\n"), "```"]


def _commands(run: RunFolder) -> list[str]:
    """Say how fedllm asks a model that no other tool knows."""
    config, learned = run.config, run.config.preferences
    judges = learned is not None and not learned.refers
    labels = trains_a_head(config.task) or judges
    lines = ["fedllm predict FOLDER FILE" if labels else "fedllm generate FOLDER --prompt TEXT"]
    if not judges:
        lines.append("fedllm serve FOLDER")
    words = "fedllm alone knows this form. It is asked by these commands, FOLDER being this folder:"
    return [words, "", "```", *lines, "```"]


def _base(run: RunFolder, handed: Handed) -> list[str]:
    model = run.section("model")
    held = str(model.get("quantization", "none"))
    location = str(model.get("path", ""))
    rows = {
        "name": handed.base_name,
        "from": location if location.startswith("package:") else None,
        "fingerprint, SHA-256 of its files": model.get("fingerprint"),
        "kind": model.get("architecture"),
        "parameters": _count(model.get("parameters")),
        "licence, in the words of its folder": handed.licence,
        "linear layers held as": None if held == "none" else held,
    }
    optional = {"from", "linear layers held as"}
    return [
        f"- {name}: {span(value) if value else UNKNOWN}"
        for name, value in rows.items()
        if value or name not in optional
    ]


def _count(value: Any) -> str | None:
    return f"{value:,}" if isinstance(value, int) else None


def _who(run: RunFolder) -> list[str]:
    sites = run.summary.get("sites")
    return [
        f"- sites: {sites if isinstance(sites, int) else UNKNOWN}",
        f"- one unit of privacy: a {run.config.unit}",
    ]


def _before_smaller(handed: Handed, done: str) -> list[str]:
    """Say of which model figures are, where it is not the one in the folder."""
    if not handed.smaller:
        return []
    words = f"{done} before it was made smaller: figures here are of the run's own model."
    return [f"{words} The model in this folder was not {done.lower()}.", ""]


def _quality(run: RunFolder) -> list[str]:
    first, last = run.first_metrics, dict(run.last_metrics)
    # How many were measured is no measure.
    records = last.pop("records", None)
    lost = [name for name, value in run.section("metrics").items() if value is None]
    at_sites = {k: v for k, v in run.section("site_metrics").items() if v is not None}
    lines = []
    if last:
        size = f" ({records:,.0f} records)" if records else ""
        lines += [f"On the coordinator's public test file{size}:", ""]
        lines += ["| measure | before | after |"]
        lines += ["|---|---|---|"]
        lines += [
            f"| {cell(name)} | {number(first.get(name))} | {number(value)} |"
            for name, value in last.items()
        ]
    else:
        lines.append("Not measured: the run had no public test file.")
    if lost:
        lines += ["", f"NOT A NUMBER: {', '.join(map(cell, lost))}. Do not use this model."]
    if at_sites:
        lines += ["", "On records that the sites held out, with noise:", ""]
        lines += [f"- {cell(name)}: {number(value)}" for name, value in at_sites.items()]
    return lines


def _privacy(run: RunFolder) -> list[str]:
    texts, config = read_texts("en"), run.config
    told = [f"- {sentence}" for sentence in RunParts(run, texts).protected()]
    if not config.private:
        return ["NONE: this run was not private, its epsilon is unlimited.", "", *told]
    spent = max([*run.epsilon.values(), *_claimed(run)], default=None)
    colluders = run.section("privacy").get("colluders_epsilon")
    words = mechanism_of(config)
    signed = "" if _heads(run) else " (as the coordinator claims; no ledger here)"
    rows = {
        "epsilon": UNKNOWN if spent is None else epsilon_text(spent) + signed,
        "epsilon that was asked for": epsilon_text(config.privacy.epsilon),
        "epsilon against all others together": _known_epsilon(colluders, signed),
        "delta": f"{config.privacy.delta:g}",
        "unit": f"each {config.unit}",
        "adjacency": ADJACENCY,
        "mechanism": f"{words.name}; noise: {words.wording.noise}",
        "clipping norm": f"{config.privacy.clipping_norm:g}",
    }
    return [*(f"- {name}: {value}" for name, value in rows.items()), "", *told]


def _claimed(run: RunFolder) -> list[float]:
    return [] if run.claimed_epsilon is None else [run.claimed_epsilon]


def _known_epsilon(value: Any, signed: str) -> str:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return epsilon_text(value) + signed if known and math.isfinite(value) else UNKNOWN


def _audits(run: RunFolder) -> list[str]:
    audited = Audited.of(run)
    attacked = (audited.canaries, audited.membership, audited.extraction)
    findings = AuditParts(run, [], read_texts("en")).findings()
    lines = [f"- {one.word} {one.text}" for one in findings]
    if not any(attacked):
        lines.insert(0, "- Not attacked: nobody tried to refute the promise or to find records.")
    return lines


def _heads(run: RunFolder) -> dict[str, Head]:
    """Return the last entry that each site signed in a run, as far as its folder holds them."""
    path = run.path / HEADS
    return {site: found[-1] for site, found in read_heads(path).items()} if path.exists() else {}


def _ledgers(run: RunFolder) -> list[str]:
    heads = _heads(run)
    if not heads:
        return [f"{UNKNOWN.capitalize()}: the run folder holds no heads of ledgers."]
    rows = [
        f"| {cell(site)} | {head.sequence} | `{head.hash}` |"
        for site, head in sorted(heads.items())[:_MOST_ROWS]
    ]
    more = len(heads) - len(rows)
    return [
        "The last entry that each site signed in this run.",
        "",
        "| site | entry | hash |",
        "|---|---|---|",
        *rows,
        *(["", f"And {more} more in {HEADS}."] if more else []),
    ]


def _origin(run: RunFolder, said: CardSection) -> list[str]:
    report = run.path / REPORT
    started = run.section("started_from")
    versions: Mapping[str, Any] = run.section("versions")
    rows = {
        "run": run.summary.get("run_id"),
        "finished": run.summary.get("finished"),
        "adapter's values, SHA-256": run.summary.get("adapter_sha256"),
        f"{REPORT} when this was written, SHA-256": (
            sha256_hex(report.read_bytes()) if report.exists() else None
        ),
        "licence of the adapter": said.licence,
        "fedllm that wrote this": __version__,
    }
    lines = [f"- {name}: {span(value) if value else UNKNOWN}" for name, value in rows.items()]
    if started:
        earlier = ancestors(started)
        lines.append(f"- started from: {span(names(earlier, UNKNOWN))}")
        if run.config.private and spent_together(earlier, run.config.unit) is None:
            lines.append("- what that tells of its own records: bounded by no epsilon here")
    lines += [f"- {cell(name)}: {span(value)}" for name, value in versions.items()]
    return lines
