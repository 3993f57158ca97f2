"""The names of all files of a run folder. They stand here alone."""

from __future__ import annotations

RUN_TOML = "run.toml"
POLICY_TOML = "policy.toml"
ROSTER = "roster.json"
LOCK = ".lock"

METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
HEADS = "ledger_heads.jsonl"
PROGRESS = "progress.jsonl"

CHECKPOINTS = "checkpoints"
ADAPTER = "adapter"

REPORT = "report.html"
REPORT_TWIN = "report.json"
COMPARISON = "comparison.json"
AUDIT = "audit"

# Of simulated sites.
LEDGERS = "ledgers"
IDENTITIES = "identities"
SITES = "sites"

# Of a run that a coordinator carries.
JOB = "job.json"
OUTCOME = "outcome.json"
CANCEL = "cancel"
# Its configuration as the sites were sent it; a release names it.
TERMS = "terms.toml"
# Of a model that was released: what the coordinator signed.
RELEASE = "release.json"
WITHDRAWN = "withdrawn.json"

# Of an alignment.
ALIGN_TOML = "align.toml"

# Of a pretraining run.
MODEL = "model"
TOKENS = "tokens"
TOKENIZER = "tokenizer"
INPUTS = "inputs.json"

# JSON Lines that are no ledger, wherever ledgers are looked for.
NO_LEDGERS = frozenset({METRICS, HEADS, PROGRESS, "rounds.jsonl"})
