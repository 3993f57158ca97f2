"""The command line: assembles the commands, turns errors into messages and exit codes."""

from __future__ import annotations

import sys
import warnings

import typer

from fedllm import __version__
from fedllm.commands import (
    align,
    audit,
    authority,
    client,
    completion,
    compress,
    config,
    ledger,
    model,
    privacy,
    provision,
    runs,
    server,
)
from fedllm.commands.benefit import benefit
from fedllm.commands.chat import chat
from fedllm.commands.dashboard import dashboard
from fedllm.commands.demo import demo
from fedllm.commands.doctor import doctor
from fedllm.commands.export import export
from fedllm.commands.generate import generate
from fedllm.commands.help import CommandGroup
from fedllm.commands.init import init
from fedllm.commands.predict import predict
from fedllm.commands.pretrain import pretrain
from fedllm.commands.rate import rate
from fedllm.commands.run import run
from fedllm.commands.serve import serve
from fedllm.commands.simulate import simulate
from fedllm.environment import set_defaults
from fedllm.errors import FedllmError, of_system

# Before a command imports flwr, ray or torch.
set_defaults()

app = CommandGroup(
    name="fedllm",
    help="Fine-tune one shared language model on records that never leave their owners.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(show: bool) -> None:
    if show:
        print(f"fedllm {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    """Fine-tune one shared language model on records that never leave their owners."""


app.command()(demo)
app.command()(init)
app.command()(pretrain)
app.command()(simulate)
app.command()(run)
app.command()(benefit)
app.command()(predict)
app.command()(generate)
app.command()(chat)
app.command()(rate)
app.command()(export)
app.command()(serve)
app.add_typer(provision.app, name="provision")
app.add_typer(server.app, name="server")
app.add_typer(authority.app, name="authority")
app.add_typer(client.app, name="client")
app.add_typer(runs.app, name="runs")
app.command()(dashboard)
app.add_typer(ledger.app, name="ledger")
app.add_typer(privacy.app, name="privacy")
app.add_typer(model.app, name="model")
app.add_typer(config.app, name="config")
app.add_typer(align.app, name="align")
app.add_typer(compress.app, name="compress")
app.add_typer(audit.app, name="audit")
app.add_typer(completion.app, name="completion")
app.command()(doctor)


def main() -> None:
    """Run a command; 0 done, 2 usage, 3 refused, 4 a peer misbehaved, 130 Ctrl-C, 1 else."""
    # A notice of transformers to its own developers, at every start.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")
    try:
        app(standalone_mode=True)
    except FedllmError as error:
        print(f"fedllm: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("fedllm: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        found = of_system(error, f"{place}{error.strerror or error}", "check the path and the disk")
        print(f"fedllm: {found}", file=sys.stderr)
        sys.exit(found.exit_code)
