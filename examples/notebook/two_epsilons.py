"""What an epsilon costs ten banks: a notebook as a script, with cells.

    python examples/notebook/two_epsilons.py

Some minutes on two cores. QUICK=1 shows that it works and teaches nothing. Cells (# %%) open in VS
Code and Spyder, and in Jupyter by jupytext. Wants FEDLLM_DATA, as the other examples do.
"""

# %% The banks of the first example, with fewer records a round and fewer rounds.
from __future__ import annotations

import os
from pathlib import Path

import fedllm

HERE = Path(__file__).resolve().parent
BANKS = HERE.parent / "bank_intents" / "shared_noise.toml"
OUT = Path(os.environ.get("OUT", "runs/notebook"))
QUICK = bool(os.environ.get("QUICK"))


def asked(epsilon: float) -> fedllm.RunConfig:
    """Return the same run with another epsilon."""
    few = {"sampling_rate": 0.02, "batch_size": 20}
    some = {"sampling_rate": 0.1, "batch_size": 100}
    return fedllm.configure(
        BANKS,
        name=f"banks-{epsilon:g}",
        data={"test_limit": 40 if QUICK else 500},
        rounds={"count": 1 if QUICK else 12, "evaluate_every": 1 if QUICK else 4},
        training=few if QUICK else some,
        privacy={"epsilon": epsilon},
    )


# %% Train with either; each line comes when its round is done.
runs = []
for epsilon in (8.0, 1.0):
    config = asked(epsilon)
    folder = OUT / config.name
    for report in fedllm.simulate_rounds(config, folder, resume=folder.exists()):
        if report.metrics:
            accuracy, spent = report.metrics["accuracy"], report.largest_epsilon or 0.0
            print(f"{config.name}  round {report.round}: {accuracy:.3f}, epsilon {spent:.3f}")
    runs.append(fedllm.open_run(folder))

# %% Side by side.
found = fedllm.compare(*runs)
for key, values in (found.settings | found.privacy | found.metrics).items():
    print(f"{key:20} {values}")
for note in found.notes:
    print("note:", note)

# %% Curves; with pandas: pandas.DataFrame(run.table()).plot(x="round", y="accuracy").
for run in runs:
    print(run.name, [(at, round(value, 3)) for at, value in run.curve("accuracy")])

# %% Ask both models.
texts = ["my card was stolen on the train", "why was I charged for a cash withdrawal?"]
for run in runs:
    for text, said in zip(texts, run.predict(texts), strict=True):
        print(f"{run.name}  {text!r}: {said.words(2)}")

# %% Do the ledgers say what the runs claim? Three accountants of other authors recompute it.
for run in runs:
    audit = run.audit_epsilon()
    print(run.name, "does not hold" if audit.critical else "holds", "->", run.report())
