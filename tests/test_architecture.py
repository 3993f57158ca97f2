"""The arrows between the folders, as the source itself has them."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import get_args

import pytest

from fedllm.config import Task
from fedllm.runs import names

ROOT = Path(__file__).resolve().parent.parent
STRANGERS = ("privacy", "encryption", "identity", "models", "data")
# What Flower documents for its users; everything else may change in any version.
PUBLIC_FLOWER = {"flwr", "flwr.app", "flwr.clientapp", "flwr.serverapp"}
TRANSPORT = "fedllm/federation/transport/"


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Every module that a file imports, at its top or inside a function."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert found
    return found


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


# README.zh.md is the README in Chinese, which its readers look for beside the other one.
TOP = {
    *("fedllm", "clients", "server", "tests", "examples", "benchmarks", "docs"),
    *("pyproject.toml", "README.md", "README.zh.md", "LICENSE"),
    # What builds, tests and publishes.
    *("Makefile", "constraints.txt", "mkdocs.yml", ".ci", ".github", ".gitignore"),
}


def test_the_top_level_holds_what_everybody_knows_and_nothing_else():
    done = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("an archive holds other files too: there is no git here")
    assert {name.partition("/")[0] for name in done.stdout.splitlines()} == TOP


def test_the_library_does_not_know_the_programs():
    for path in files("fedllm"):
        if path.parent.name not in ("commands", "api"):
            for module in imports(path):
                assert not within(module, "fedllm_client"), path
                assert not within(module, "fedllm_server"), path


@pytest.mark.parametrize("folder", STRANGERS)
def test_strangers_do_not_know_each_other(folder):
    for path in files(f"fedllm/{folder}"):
        for module in imports(path):
            for other in set(STRANGERS) - {folder}:
                assert not within(module, f"fedllm.{other}"), path


def test_nothing_installed_needs_the_tests_or_benchmarks():
    for path in files("fedllm", "clients", "server"):
        for module in imports(path):
            assert not any(within(module, name) for name in ("tests", "support", "benchmarks"))


def test_mechanisms_know_what_was_asked_and_what_it_costs_and_nothing_else():
    allowed = {"config", "errors", "mechanisms", "privacy", "randomness"}
    for path in files("fedllm/mechanisms"):
        for module in imports(path):
            if within(module, "fedllm"):
                assert module.split(".")[1] in allowed, f"{path} imports {module}"


@pytest.mark.parametrize("folder", STRANGERS)
def test_what_training_stands_on_does_not_know_training(folder):
    for path in files(f"fedllm/{folder}"):
        for module in imports(path):
            for above in ("mechanisms", "training", "federation", "audit"):
                assert not within(module, f"fedllm.{above}"), f"{path} imports {module}"


def test_an_alignment_knows_neither_mechanisms_nor_sites():
    """It uses what was released: else it would be no post-processing."""
    strangers = ("mechanisms", "training", "federation", "privacy", "encryption", "identity")
    for path in files("fedllm/alignment"):
        for module in imports(path):
            assert not any(within(module, f"fedllm.{name}") for name in strangers), (path, module)


def test_adapters_know_models_and_nothing_above():
    for path in files("fedllm/adapters"):
        for module in imports(path):
            if within(module, "fedllm"):
                assert module.split(".")[1] in {"adapters", "models", "errors"}, (path, module)
    for path in files("fedllm/models", "fedllm/mechanisms", "fedllm/training", "fedllm/tasks"):
        assert not any(within(module, "fedllm.adapters") for module in imports(path)), path


def test_rounds_ask_the_adapter_how_long_its_spaces_are():
    """What goes down, is trained and comes up have lengths of their own."""
    for path in files("fedllm/federation", "server"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("manifest", "set_adapter", "initial"), (path, node.lineno)


# Words of a configuration by which a mechanism could be told.
MECHANISM_KEYS = {"distribution", "clipping_quantile", "colluders"}
MECHANISM_VALUES = {"distributed", "discrete_gaussian"}


def asks_which_mechanism(path: Path) -> set[int]:
    """Lines that look into a configuration for the mechanism instead of asking it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            owner = node.value
            section = isinstance(owner, ast.Attribute) and owner.attr == "privacy"
            section |= isinstance(owner, ast.Name) and owner.id == "privacy"
            if section and node.attr in MECHANISM_KEYS | {"noise"}:
                found.add(node.lineno)
        if isinstance(node, ast.Compare):
            for side in (node.left, *node.comparators):
                if isinstance(side, ast.Constant) and side.value in MECHANISM_VALUES:
                    found.add(node.lineno)
    return found


def test_nobody_else_asks_which_mechanism_a_run_has():
    allowed = ("fedllm/mechanisms/", "fedllm/config/")
    # What the run asked for is written into its summary, and its assumption into the report.
    recorded = {
        "fedllm/audit/report/run_parts.py",
        "fedllm/audit/selftest/whole_sites.py",
        # The self-test computes for itself what a site must announce.
        "fedllm/audit/selftest/building.py",
    }
    for path in files("fedllm", "clients", "server"):
        name = str(path.relative_to(ROOT))
        if not name.startswith(allowed) and name not in recorded:
            assert not asks_which_mechanism(path), (name, asks_which_mechanism(path))


def test_how_a_question_for_the_mechanism_is_seen(tmp_path):
    path = tmp_path / "x.py"
    for text in ('if config.privacy.noise == "local": pass', 'x = noise == "distributed"'):
        path.write_text(text)
        assert asks_which_mechanism(path) == {1}
    path.write_text("config.privacy.epsilon")
    assert not asks_which_mechanism(path)


def test_flowers_private_modules_stay_where_messages_are_carried():
    found = {
        str(path.relative_to(ROOT))
        for path in files("fedllm", "clients", "server")
        for module in imports(path)
        if within(module, "flwr") and not is_public(module)
    }
    assert found
    assert all(path.startswith(TRANSPORT) for path in found), found


# Other files of the project bear the names of the roster and of folders too.
RUN_FILES = {
    value
    for name, value in vars(names).items()
    if name.isupper() and isinstance(value, str) and "." in value.strip(".")
} - {names.ROSTER}


def texts(path: Path) -> set[str]:
    """Every text that a file has as a literal; docstrings hold more than one name."""
    return {
        node.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def test_the_files_of_a_run_folder_are_named_in_one_place():
    assert {"summary.json", "metrics.jsonl", "progress.jsonl", "report.html"} <= RUN_FILES
    for path in files("fedllm", "clients", "server"):
        if path != ROOT / "fedllm" / "runs" / "names.py":
            assert not texts(path) & RUN_FILES, path


def test_a_run_folder_is_read_without_torch():
    heavy = ("torch", "transformers", "fedllm.models", "fedllm.training", "fedllm.encryption")
    for path in files("fedllm/runs"):
        for module in imports(path):
            assert not any(within(module, name) for name in heavy), path


def test_a_page_of_runs_knows_neither_records_nor_models():
    strangers = ("data", "models", "tasks", "training", "mechanisms", "encryption", "at_rest")
    for path in files("fedllm/dashboard", "fedllm/overview", "fedllm/trackers"):
        for module in imports(path):
            assert not any(within(module, f"fedllm.{name}") for name in strangers), (path, module)


def is_public(module: str) -> bool:
    package, _, name = module.rpartition(".")
    return module in PUBLIC_FLOWER or (package in PUBLIC_FLOWER and name[:1].isupper())


def test_how_imports_are_seen(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("import a.b\ndef f():\n    from flwr.supercore import run\n")
    assert set(imports(path)) == {"a.b", "flwr.supercore", "flwr.supercore.run"}
    assert is_public("flwr.app.Context")
    assert not is_public("flwr.app.message")
    assert not is_public("flwr.server.Driver")


def test_what_a_run_released_is_read_in_one_place():
    """Else exports and services would take other folders, and refuse other ones."""
    reading = {
        str(path.relative_to(ROOT))
        for path in files("fedllm/exporting", "fedllm/serving", "fedllm/compression")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "load_adapter"
    }
    assert reading == {"fedllm/exporting/found.py"}


# --- tasks ----------------------------------------------------------------------------------

TASK_NAMES = set(get_args(Task))
# Where a name of a task is chosen or decided; everyone else asks `fedllm.tasks`.
NAMES_TASKS = {
    "fedllm/config/section.py",  # the names themselves
    "fedllm/config/site_policy.py",  # which of them a site allows if it does not say
    "fedllm/config/recipes.py",  # what a run of each begins with
    "fedllm/config/task.py",  # what a configuration must know of each
    "fedllm/tasks/registry.py",  # from name to task
    "fedllm/tasks/causal.py",
    "fedllm/tasks/classification.py",
    "fedllm/tasks/instruction.py",
    "fedllm/tasks/preference.py",
    "fedllm/tasks/token_classification.py",
    "fedllm/starting/guessing.py",  # what somebody's columns could be for
    "fedllm/starting/settings.py",  # the section of a configuration that is called as one
    "fedllm/serving/released.py",  # the same
    # Objectives of pretraining, one of which is called "causal" too.
    "fedllm/pretraining/card.py",
    "fedllm/pretraining/config.py",
    "fedllm/pretraining/material.py",
}
# Where it matters what class the module has, whatever it is trained for.
LOOKS_INTO_MODELS = {
    "fedllm/compression/distilling.py",  # what a student answers, and for which tokens
    "fedllm/compression/whole.py",  # what is not made smaller
    "fedllm/exporting/kinds.py",  # what others must put on top of the base
    "fedllm/models/saved.py",  # which tensors are saved
    "fedllm/models/shared.py",
    "fedllm/models/start.py",  # which of them begin a run
    "fedllm/tasks/answering.py",
}


@pytest.mark.parametrize("folder", ["config", "pretraining", *STRANGERS])
def test_what_is_below_the_tasks_does_not_know_them(folder):
    for path in files(f"fedllm/{folder}"):
        assert not any(within(module, "fedllm.tasks") for module in imports(path)), path


def test_tasks_know_data_models_and_configuration_alone():
    below = ("config", "data", "models", "tasks", "errors", "randomness")
    for path in files("fedllm/tasks"):
        for module in imports(path):
            if within(module, "fedllm"):
                assert any(within(module, f"fedllm.{name}") for name in below), (path, module)


def test_records_are_read_and_models_loaded_by_their_task():
    """Else a record would not have the unit that its task protects, or a model not its head."""
    for path in files("fedllm", "clients", "server"):
        if path.parent in (ROOT / "fedllm/tasks", ROOT / "fedllm/data", ROOT / "fedllm/models"):
            continue
        for module in imports(path):
            assert not within(module, "fedllm.data.sources"), path
            assert module not in ("fedllm.data.encode.encode", "fedllm.data.columns.column_map")
            assert module != "fedllm.models.shared.load_shared_model", path


def test_nobody_else_looks_at_the_name_of_a_task():
    found: dict[str, set[str]] = {"names": set(), "looks": set()}
    for path in files("fedllm", "clients", "server"):
        tree = ast.parse(path.read_text())
        name = str(path.relative_to(ROOT))
        if names_a_task(tree):
            found["names"].add(name)
        if looks_into_a_model(tree):
            found["looks"].add(name)
    assert found == {"names": NAMES_TASKS, "looks": LOOKS_INTO_MODELS}


def names_a_task(tree: ast.AST) -> bool:
    return any(isinstance(node, ast.Constant) and node.value in TASK_NAMES for node in nodes(tree))


def looks_into_a_model(tree: ast.AST) -> bool:
    """Whether anything asks a value if it is one of the networks, by call or by pattern."""
    networks = {"TextClassifier", "TokenClassifier", "LanguageModel", "PromptedModel"}

    def said(part: ast.AST | None) -> set[str]:
        inner = nodes(part) if part else ()
        return {getattr(n, "attr", getattr(n, "id", "")) for n in inner}

    for node in nodes(tree):
        asked = isinstance(node, ast.Call) and said(node.func) & {"isinstance", "type"}
        if asked and networks & said(node):
            return True
        if isinstance(node, ast.MatchClass) and networks & said(node.cls):
            return True
        # `type(x) is TextClassifier`
        if isinstance(node, ast.Compare) and networks & said(node):
            return True
    return False


def nodes(tree: ast.AST) -> list[ast.AST]:
    return list(ast.walk(tree))


@pytest.mark.parametrize(
    ("text", "names", "looks"),
    [
        ("if config.task == 'classification': pass", True, False),
        ("KINDS = {'causal': 1}", True, False),
        ("match task:\n    case 'instruction': pass", True, False),
        ("raise ValueError('classification needs two')", False, False),
        ("isinstance(model.module, TextClassifier | None)", False, True),
        ("isinstance(m, transformer.LanguageModel)", False, True),
        ("type(m) is TextClassifier", False, True),
        ("isinstance(m, TokenClassifier)", False, True),
        ("match m:\n    case TextClassifier(): pass", False, True),
        ("def f(m: TextClassifier) -> None: TextClassifier(1)", False, False),
    ],
)
def test_how_questions_about_tasks_are_seen(text, names, looks):
    tree = ast.parse(text)
    assert (names_a_task(tree), looks_into_a_model(tree)) == (names, looks)


# What makes other tensors of a module's, so that who holds the old ones trains nothing.
MOVES = {"to", "cuda", "xpu", "to_empty", "half", "bfloat16", "_apply"}
# The base, before anything is put into it; all else are tensors.
MOVED = {
    ("fedllm/models/device.py", "model"),
    ("fedllm/models/device.py", "value"),
    ("fedllm/models/behaviour.py", "(ids + (ids >= pad)).clamp(max=vocabulary - 1)"),
    ("fedllm/models/quantized.py", "self.codes.flatten(1)"),
    ("fedllm/models/quantized.py", "scales"),
    ("fedllm/models/quantized.py", "unpack(self.codes)"),
    ("fedllm/models/quantized.py", "codes"),
    ("fedllm/models/quantized.py", "torch.where(top >= -bottom, top, bottom) / lowest"),
    ("fedllm/models/readout.py", "(given[0][:, None] * slopes)"),
    ("fedllm/models/token_head.py", "states"),
    ("fedllm/models/transformer.py", "mask.unsqueeze(-1)"),
    ("fedllm/training/memory.py", "tensor.detach()"),
}


def moved(path: Path) -> set[str]:
    """What a file moves to another device or type, as it is written there."""
    return {
        ast.unparse(node.func.value)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in MOVES
    }


def test_a_model_is_moved_in_one_place_before_anything_is_put_into_it():
    """Else adapters may train that the model does not compute with; see `put_on`."""
    found = {
        (str(path.relative_to(ROOT)), what)
        for path in files("fedllm", "clients", "server")
        if path.parent != ROOT / "fedllm/pretraining"
        for what in moved(path)
    }
    assert {(name, what.strip("()")) for name, what in found} == {
        (name, what.strip("()")) for name, what in MOVED
    }
    # And that place is asked while the base is loaded, and by nobody else.
    for path in files("fedllm", "clients", "server"):
        allowed = {ROOT / f"fedllm/models/{name}.py" for name in ("device", "plain", "shared")}
        allowed.add(ROOT / "fedllm/serving/exported.py")
        assert path in allowed or "put_on(" not in path.read_text().replace("_put_on(", ""), path


def test_how_moves_are_seen(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("model.module.to('cuda')\nmodel.cuda()\nx.to\n")
    assert moved(path) == {"model.module", "model"}


def calls(path: Path) -> set[str]:
    """The dotted names that a file uses, such as ``json.dumps``."""
    return {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }


# Who writes JSON for a file of its own; what is signed or hashed is `fedllm.canonical`'s. The
# authority's log is signed in the form that it has on disk.
OWN_JSON = {
    "fedllm/federation/authority/round_log.py",
    "fedllm/federation/site/telling.py",
    "fedllm/identity/enrolment.py",
    "fedllm/identity/roster.py",
    "fedllm/privacy/ledger/heads.py",
}


def test_what_is_signed_or_hashed_has_one_form():
    signing = files(*(f"fedllm/{name}" for name in ("identity", "encryption", "federation")))
    for path in (*signing, *files("fedllm/privacy")):
        used = calls(path)
        assert "hashlib.sha256" not in used, path
        assert "json.dumps" not in used or str(path.relative_to(ROOT)) in OWN_JSON, path
        # An answer holds a roster that was signed a moment before.
        assert "json.loads" not in used or path.name == "enrolment.py", path


def test_hexadecimal_digits_are_read_in_one_place():
    found = [
        path for path in files("fedllm", "clients", "server") if "bytes.fromhex" in calls(path)
    ]
    assert [str(path.relative_to(ROOT)) for path in found] == ["fedllm/canonical.py"]
