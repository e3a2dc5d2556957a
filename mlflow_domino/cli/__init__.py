"""The command `mlflow-domino`."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from mlflow_domino import __version__
from mlflow_domino.cli.output import INTERRUPTED, Group, report
from mlflow_domino.errors import DominoError

__all__ = ["cli", "main"]


class _Root(Group):
    """Imports the commands when one of them is looked for."""

    def list_commands(self, context: click.Context) -> list[str]:
        _load()
        return super().list_commands(context)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        _load()
        return super().get_command(context, name)


@functools.cache
def _load() -> None:
    from mlflow_domino.cli import endpoint, export, gateway, machine, observe, predictions, token

    for module in (machine, endpoint, export, gateway, token, observe, predictions):
        module.add_to(cli)


@click.group(cls=_Root, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="mlflow-domino")
@click.option("-t", "--target", metavar="URI", help="Data plane: domino (this machine, the default) or domino:/NAME.")
def cli(target: str | None) -> None:
    """Look after the HTTP endpoints of MLflow models and project code.

    `mlflow deployments create -t domino --name NAME -m MODEL` makes one; so does `mlflow-domino endpoint create`.
    Exit codes: 0 done, 1 failed, 2 refused, 3 not found, 4 somebody else is changing it, 5 does not answer.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return its exit code."""
    try:
        result: Any = cli.main(args=arguments, prog_name="mlflow-domino", standalone_mode=False)
        sys.stdout.flush()
    except click.Abort:
        click.echo("Interrupted; `mlflow-domino status` tells what runs.", err=True)
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except DominoError as error:
        report(error, as_json="--json" in (sys.argv[1:] if arguments is None else arguments))
        return error.exit_code
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return result if isinstance(result, int) else 0
