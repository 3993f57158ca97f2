"""Completion, in a real shell."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedllm.cli import app
from fedllm.commands.completion import script_of


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


PLACES = {
    "bash": ".local/share/bash-completion/completions/fedllm",
    "zsh": ".zfunc/_fedllm",
    "fish": ".config/fish/completions/fedllm.fish",
}


def test_a_script_is_the_same_after_typer_has_answered():
    from typer._completion_classes import completion_init

    before = {shell: script_of(shell) for shell in PLACES}
    completion_init()
    assert {shell: script_of(shell) for shell in PLACES} == before


@pytest.mark.parametrize("shell", PLACES)
def test_one_file_is_written_and_no_other(home, shell):
    (home / ".bashrc").write_text("mine\n")
    done = CliRunner().invoke(app, ["completion", "install", "--shell", shell])
    assert done.exit_code == 0, done.output
    files = {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()}
    assert files == {".bashrc", PLACES[shell]}
    assert (home / ".bashrc").read_text() == "mine\n"
    shown = CliRunner().invoke(app, ["completion", "show", "--shell", shell])
    assert (home / PLACES[shell]).read_text().strip() == shown.output.strip()
    assert "new terminal" in done.output
    assert f"_FEDLLM_COMPLETE=complete_{shell} " in shown.output
    assert shell != "fish" or "__fish_complete_path" in shown.output


def test_the_shell_is_that_of_the_account(home, monkeypatch):
    monkeypatch.setenv("SHELL", "/usr/bin/fish")
    assert ".config/fish" in CliRunner().invoke(app, ["completion", "install"]).output
    monkeypatch.setenv("SHELL", "/bin/csh")
    done = CliRunner().invoke(app, ["completion", "install"])
    assert "csh" in str(done.exception)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_commands(home):
    CliRunner().invoke(app, ["completion", "install", "--shell", "bash"])
    program = home / "bin" / "fedllm"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom fedllm.cli import main\nmain()\n")
    program.chmod(0o755)
    script = (
        f"source {home / PLACES['bash']}; COMP_WORDS=(fedllm config exp); COMP_CWORD=2; "
        '_fedllm_completion fedllm; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", script],
        env={
            "PATH": f"{program.parent}:/usr/bin:/bin",
            "HOME": str(home),
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "explain", done.stderr
