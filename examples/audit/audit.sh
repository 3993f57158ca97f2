#!/bin/sh
# An auditor's visit, from the installation to the report. Run it from the repository's root;
# takes some minutes.
#
#   sh examples/audit/audit.sh [FOLDER]
set -eu
out=${1:-runs/audit}
fedllm() { "${PYTHON:-.venv/bin/python}" -m fedllm "$@"; }

echo "1. Does the installed code do what an epsilon assumes?"
fedllm audit selftest

echo "2. A federated run that promises epsilon 8, and its twin without privacy."
fedllm simulate examples/audit/run.toml --out "$out/private"
fedllm simulate examples/audit/run.toml --set name=twin --set privacy.epsilon=none --out "$out/twin"

echo "3. Is the epsilon in the ledgers computed rightly?"
fedllm audit epsilon "$out/private"
fedllm audit epsilon "$out/twin"

echo "4. Does the promise survive attacks on canaries, in a copy of the run?"
fedllm audit canaries "$out/private"
fedllm audit canaries "$out/twin"

echo "5. Can training records be told by the released model? And by its twin?"
fedllm audit membership "$out/private" "$out/twin" --shadows 2

echo "6. One page to file, in English here; --language zh for Chinese."
fedllm audit report "$out/private" --beside "$out/twin"
