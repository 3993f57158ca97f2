"""The examples are read by the same strict readers as everybody's files."""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.kits import make_federation
from support.ledger import filled
from typer.testing import CliRunner

from fedllm.cli import app
from fedllm.config import load_run_config, load_site_policy
from fedllm.data.rankings import Ranking
from fedllm.data.spans import read_back
from fedllm.federation.transport.superlink import NodeState
from fedllm.identity.kits import read_kit
from fedllm.runs.metrics import RoundReport, append_report
from fedllm.runs.summary import Summary
from fedllm.tasks import task_of
from fedllm_server.service import Service

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
STORIES = ("bank_intents", "hospital_questions", "audit")
RUNS = [p for s in STORIES for p in (EXAMPLES / s).glob("*.toml") if p.stem != "pretrain"]


@pytest.mark.parametrize("path", RUNS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_runs_can_be_read_and_find_their_data(path, public_data, monkeypatch):
    monkeypatch.setenv("FEDLLM_DATA", str(public_data))
    config = load_run_config(path)
    for location in (config.data.train, config.data.test):
        assert Path(location).exists()


@pytest.fixture(scope="module")
def deidentified(public_data, tmp_path_factory) -> Path:
    """The folder that the example's first command makes."""
    folder = tmp_path_factory.mktemp("deidentification")
    script = EXAMPLES / "deidentification/prepare.py"
    environment = {**os.environ, "FEDLLM_DATA": str(public_data)}
    done = subprocess.run(
        [sys.executable, script, folder],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "train.jsonl: 1335 windows of 83 visits, 298 names" in done.stdout
    assert "test.jsonl: 1648 windows of 101 visits, 385 names" in done.stdout
    return folder


@pytest.mark.parametrize("name", ["run", "clear"])
def test_the_deidentification_marks_names_that_its_runs_can_read(deidentified, name, monkeypatch):
    monkeypatch.setenv("DEIDENTIFICATION_DATA", str(deidentified))
    config = load_run_config(EXAMPLES / f"deidentification/{name}.toml")
    task = task_of(config.task)
    records = task.read(config.data.train, config.data)
    public = task.read_public(config.data)
    assert len({record.unit for record in records}) == (83 if config.data.unit else 1)
    assert task.labels(config.data, public) == ("NAME",)
    assert {record.site for record in records} == {"aci", "virtassist", "virtscribe"}
    visits = [
        {json.loads(line)["visit"] for line in Path(location).read_text().splitlines()}
        for location in (config.data.train, config.data.test)
    ]
    assert not visits[0] & visits[1]
    marked = [
        record.values["text"][span.start : span.end]
        for record in [*records, *public]
        for span in read_back(record.values["spans"])
    ]
    assert len(marked) == 298 + 385
    assert all(text == text.strip() and text.replace(" ", "").isalnum() for text in marked)


@pytest.fixture(scope="module")
def ranked(tmp_path_factory) -> tuple[Path, str]:
    """The folder that the example of preferences makes, and what it says."""
    folder = tmp_path_factory.mktemp("preferences")
    script = EXAMPLES / "preferences/prepare.py"
    done = subprocess.run(
        [sys.executable, script, folder], capture_output=True, text=True, check=True
    )
    return folder, done.stdout


@pytest.mark.parametrize("name", ["reward", "dpo"])
def test_the_preferences_are_events_that_its_runs_can_read(ranked, name, monkeypatch):
    folder, told = ranked
    monkeypatch.setenv("PREFERENCES_DATA", str(folder))
    config = load_run_config(EXAMPLES / f"preferences/{name}.toml")
    readme = (EXAMPLES / "preferences/README.md").read_text()
    assert told.splitlines()[-1].split()[-1] in readme
    task = task_of(config)
    public = task.read_public(config.data)
    assert len(public) == 2000
    assert all(Ranking.read_back(record.values).pairs for record in public)
    assert len(Path(config.data.train).read_text().splitlines()) == 8000


def test_public_texts_have_the_words_of_each_label_and_nothing_of_the_records(
    public_data, tmp_path
):
    about = tmp_path / "adapter" / "shared_model.json"
    about.parent.mkdir()
    about.write_text(json.dumps({"labels": ["card_arrival", "Refund_not_showing_up"]}))
    command = [sys.executable, EXAMPLES / "bank_intents/public_texts.py", tmp_path]
    environment = {**os.environ, "FEDLLM_DATA": str(public_data), "PYTHONHASHSEED": "random"}
    one, other = (
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    )
    assert one == other
    texts = one.splitlines()
    assert len(set(texts)) == len(texts) > 4378
    for words in ("card arrival", "refund not showing up"):
        assert sum(words in text for text in texts) >= 40
    with gzip.open(public_data / "banking77" / "train.jsonl.gz", "rt") as file:
        assert not {json.loads(line)["text"] for line in file} & set(texts[4378:])


def test_pretraining_configurations_can_be_read(monkeypatch, tmp_path):
    from fedllm.pretraining.config import load_pretrain_config

    monkeypatch.setenv("FEDLLM_DATA", str(tmp_path))
    named = ("hospital_questions/pretrain.toml", "preferences/pretrain.toml")
    found = [*(EXAMPLES / name for name in named), *EXAMPLES.glob("pretraining/*.toml")]
    assert len({load_pretrain_config(path, []).name for path in found}) == len(found)


def test_the_policy_can_be_read():
    policy = load_site_policy(EXAMPLES / "site.toml")
    assert policy.budget.epsilon == 10.0
    assert policy.allow.min_cohort == 3


def test_the_audit_story_calls_commands_and_options_that_exist():
    script = (EXAMPLES / "audit/audit.sh").read_text()
    subprocess.run(["sh", "-n", EXAMPLES / "audit/audit.sh"], check=True)
    calls = re.findall(r"^fedllm (.+)$", script, flags=re.MULTILINE)
    assert len(calls) >= 9
    for command in sorted(
        {tuple(call.split()[: 2 if "audit" in call[:5] else 1]) for call in calls}
    ):
        shown = subprocess.run(
            [sys.executable, "-m", "fedllm", *command, "--help"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for call in calls:
            if tuple(call.split()[: len(command)]) == command:
                for option in re.findall(r"--[a-z-]+", call):
                    assert option in shown, (command, option)


SNIPPETS = [
    (script, snippet)
    for script in sorted(EXAMPLES.glob("*/*.sh"))
    for snippet in re.findall(r'"\$python" -c \'(.*?)\'', script.read_text(), re.DOTALL)
]


@pytest.fixture
def outputs(tmp_path):
    """For each snippet: arguments, input and a part of the output, as today's program has them."""
    filled(tmp_path / "ledger.sqlite")
    shown = CliRunner().invoke(app, ["ledger", "show", str(tmp_path / "ledger.sqlite"), "--json"])
    make_federation(tmp_path)
    kits, nodes = tmp_path / "kits", [NodeState("anne", 1, True, "2026-01-01T00:00:00+00:00")]
    service = Service(read_kit(kits / "coordinator", "coordinator"), ("127.0.0.1", 0), print)
    service._report(SimpleNamespace(nodes=lambda: nodes), running=False)
    figures = {"metrics_before": {"accuracy": 0.5}, "metrics": {"accuracy": 0.75}}
    end = Summary(rounds=9, privacy={"promised": 8.0}, **figures)
    (tmp_path / "summary.json").write_text(end.model_dump_json())
    key = read_kit(kits / "anne", "site").identity.public_bytes().hex()
    return {
        '["nodes"]': ([kits / "coordinator/state/status.json", "1"], "", ""),
        '["metrics"]': ([tmp_path / "summary.json"], "", "0.5000 -> 0.7500, epsilon 8.0"),
        "read_kit": ([kits / "anne"], "", key),
        "sys.stdin": ([], shown.output, "of 2.0 spent"),
    }


def test_what_scripts_read_from_commands_is_there(outputs):
    assert len(SNIPPETS) >= len(outputs)
    for script, snippet in SNIPPETS:
        (known,) = [found for mark, found in outputs.items() if mark in snippet]
        arguments, given, said = known
        command = [sys.executable, "-c", snippet, *arguments]
        done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{script}: {done.stderr}"
        assert said in done.stdout


def test_the_deployment_says_how_far_it_is(tmp_path):
    """The script's own functions, over a run whose rounds come while it sleeps."""
    script = (EXAMPLES / "deployment/run.sh").read_text()
    functions = re.search(r"^rounds=.*?^}\nwait_for_round.*?^}\n", script, re.MULTILINE | re.DOTALL)
    folder = tmp_path / "state" / "runs" / "banks"
    folder.mkdir(parents=True)
    lines = []
    for number in range(3):
        append_report(tmp_path / "one", RoundReport(round=number, sites=2))
        lines.append((tmp_path / "one").read_text().splitlines()[-1])
    (tmp_path / "lines").write_text("\n".join(lines) + "\n")
    program = f"""
set -euo pipefail
here={shlex.quote(str(EXAMPLES / "deployment"))}
name=banks out={shlex.quote(str(tmp_path))} step=0
kit() {{ echo "$out"; }}
sleep() {{ step=$((step + 1)); case $step in 1|40|41)
  head -n "$((step < 40 ? 1 : step - 38))" "$out/lines" >"$out/state/runs/banks/metrics.jsonl"
esac; }}
{functions[0]}
wait_for_round 2
finished_round
"""
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    words = "0 min: {} of 20 rounds are finished, waiting for round 2"
    assert done.stdout.splitlines() == [words.format(n) for n in (0, 0, 1)] + ["2"]


def test_the_deployment_says_first_how_long_it_takes():
    script = (EXAMPLES / "deployment/run.sh").read_text()
    assert script.index("ten to twenty minutes on two free cores") < script.index('say "provision')


FOLDERS = sorted(path.parent for path in EXAMPLES.glob("*/*") if path.name == "README.md")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_each_story_has_a_page_of_one_screen(folder):
    text = (folder / "README.md").read_text()
    assert len(text.splitlines()) <= 70
    assert text.startswith("# ")
    assert "```\n" in text


def test_the_chooser_names_every_story_once_with_what_it_needs():
    folders = {path.name for path in EXAMPLES.iterdir() if path.is_dir() and path.name[0] != "_"}
    assert folders == {path.name for path in FOLDERS}
    text = (EXAMPLES / "README.md").read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    named = [re.search(r"\]\((\w+)/README\.md\)", row[2])[1] for row in rows]
    assert sorted(named) == sorted(folders)
    assert all(len(row) == 5 and all(cell.strip(" |") for cell in row) for row in rows)
    # Two begin with a file of the reader's own.
    assert sum("your" in row[3] and "makes up" in row[3] for row in rows) == 2
