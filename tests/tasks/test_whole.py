"""A task whose name is added without all that a task must say does not type-check.

mypy reads the package with single files replaced; what is no part of the question (torch,
pydantic, the rest of fedllm) it does not follow, which keeps this quick.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from mypy import api

from fedllm.tasks import LearningTask

ROOT = Path(__file__).resolve().parents[2]
READ = (
    "fedllm/config/__init__.py",
    "fedllm/config/preference.py",
    "fedllm/config/section.py",
    "fedllm/config/task.py",
    "fedllm/data/columns.py",
    "fedllm/data/rankings.py",
    "fedllm/data/records.py",
    "fedllm/models/heads.py",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "fedllm/tasks").glob("*.py")),
)
SECTION, DECIDED = "fedllm/config/section.py", "fedllm/config/task.py"
REGISTRY = "fedllm/tasks/registry.py"
MEMBERS = """
    @property
    def name(self) -> Task:
        return "ranking"

    def columns(self, data: DataSection) -> dict[str, Column]:
        return {}

    def unit(self, record: Record) -> str | None:
        return f"{record.values['prompt']}"

    def labels(self, data: DataSection, public: Sequence[Record]) -> tuple[str, ...]:
        return ()

    def counted(self, records: Sequence[Record]) -> str:
        return ""

    def made_up(
        self, words: Words, stream: RandomStream, labels: tuple[str, ...], length: int = 8
    ) -> Record:
        raise NotImplementedError

    def encoder(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int, labels: tuple[str, ...]
    ) -> Encoder:
        raise NotImplementedError

    def head(self, labels: tuple[str, ...]) -> Head:
        raise NotImplementedError

    def losses(self, model: SharedModel, batch: Batch) -> Tensor:
        raise NotImplementedError

    def answering(self) -> None:
        return None

    def prompting(self) -> None:
        return None

    def predicting(self) -> None:
        return None

    def sums(self, model: SharedModel, batch: Batch) -> NDArray[np.float64]:
        raise NotImplementedError

    def figures(
        self, sums: NDArray[np.float64], records: int, labels: tuple[str, ...]
    ) -> dict[str, float]:
        raise NotImplementedError

    @property
    def measures(self) -> tuple[str, ...]:
        return ()

    @property
    def site_scores(self) -> tuple[Score, ...]:
        return ()

    def scores(self, model: SharedModel, batch: Batch) -> NDArray[np.float64]:
        raise NotImplementedError

    def confidence(self, losses: NDArray[np.float64]) -> NDArray[np.float64]:
        raise NotImplementedError
"""


def changed(file: str, *replacements: tuple[str, str]) -> dict[str, str]:
    """Return a file's text with each part replaced, by the file's name."""
    text = (ROOT / file).read_text()
    for old, new in replacements:
        assert old in text, (file, old)
        text = text.replace(old, new)
    return {file: text}


NAMED = changed(SECTION, ('"causal", ', '"causal", "ranking", '))
ALL = '"instruction" | "causal"'
CAUSAL = 'case "causal"'
KNOWN = NAMED | changed(
    DECIDED, (ALL, f'{ALL} | "ranking"'), (f"{CAUSAL}:", f'{CAUSAL} | "ranking":')
)


def task(members: str, name: str = "Ranking") -> str:
    """Return a class."""
    return f"\n\nclass {name}(LearningTask):{members}"


def registry(classes: str, made: str = "Ranking") -> dict[str, str]:
    """Return the registry with these classes beside `task_of`, one of which it returns."""
    base = (ROOT / "fedllm/tasks/base.py").read_text()
    imports = base[base.index("from abc import") : base.index("# Makes so many words.")]
    case = f'        case "ranking":\n            return {made}()\n'
    return changed(
        REGISTRY,
        ("        case _:\n", f"{case}        case _:\n"),
        ("import LearningTask\n", f"import LearningTask, Words\n{imports}"),
        ("\n\ndef task_of(", f"{classes}\n\ndef task_of("),
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """What mypy knows of the standard library, read once."""
    return tmp_path_factory.mktemp("mypy")


@pytest.fixture
def complaints(cache, tmp_path) -> Callable[[Mapping[str, str]], list[str]]:
    """Return mypy's errors, one a line, with some files in place of the package's own."""

    def check(changes: Mapping[str, str]) -> list[str]:
        arguments = []
        for number, (file, text) in enumerate(changes.items()):
            shadow = tmp_path / f"{number}.py"
            shadow.write_text(text)
            arguments += ["--shadow-file", str(ROOT / file), str(shadow)]
        settings = tmp_path / "mypy.ini"
        settings.write_text(f"[mypy]\nmypy_path = {ROOT}\nexplicit_package_bases = True\n")
        out, err, _ = api.run(
            [
                *arguments,
                f"--config-file={settings}",
                f"--cache-dir={cache}",
                "--follow-imports=skip",
                "--ignore-missing-imports",
                "--disallow-untyped-defs",
                "--no-error-summary",
                "--show-absolute-path",
                *(str(ROOT / file) for file in READ),
            ]
        )
        assert not err, err
        return [line.removeprefix(f"{ROOT}/") for line in out.splitlines() if ": error:" in line]

    return check


@pytest.mark.parametrize(
    "changes", [{}, KNOWN | registry(task(MEMBERS))], ids=["as it is", "with another task"]
)
def test_what_is_whole_passes(changes, complaints):
    assert complaints(changes) == []


def test_a_name_alone_is_refused_wherever_it_has_to_be_decided(complaints):
    found = complaints(NAMED)
    assert all("ranking" in line and "assert_never" in line for line in found)
    assert sorted(line.split(":")[0] for line in found) == [*[DECIDED] * 9, REGISTRY]


def test_a_task_that_lacks_any_part_is_refused_with_its_name(complaints):
    parts = re.split(r"(?m)^(?=    @property\n|(?<!@property\n)    def )", MEMBERS)
    names = [re.search(r"def (\w+)", part).group(1) for part in parts[1:]]
    assert set(names) == LearningTask.__abstractmethods__
    classes = made = ""
    for name, part in zip(names, parts[1:], strict=True):
        classes += task(MEMBERS.replace(part, ""), f"Without_{name}")
        made += f"\nWithout_{name}()"
    found = complaints(KNOWN | registry(f"{classes}\n{made}\n", f"Without_{names[0]}"))
    for name in names:
        refused = f'class "Without_{name}" with abstract attribute "{name}"'
        assert any(refused in line for line in found), name


def test_a_part_of_the_wrong_kind_is_refused(complaints):
    wrong = MEMBERS.replace("-> dict[str, float]:", "-> float:")
    assert wrong != MEMBERS
    found = complaints(KNOWN | registry(task(wrong)))
    assert found
    assert all('"figures"' in line for line in found)
