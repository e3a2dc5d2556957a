"""What every command has: its target, `--json`, and where it writes."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from mlflow_domino.cli.tables import pairs, table
from mlflow_domino.errors import DominoError

if TYPE_CHECKING:
    from mlflow_domino.controller import Controller

__all__ = ["INTERRUPTED", "Group", "Output", "command", "endpoint_argument", "report"]

#: What a shell reports of a program that Ctrl-C ended.
INTERRUPTED = 130
#: No help's first sentence has more characters.
_SENTENCE = 1000


class Command(click.Command):
    """A command whose line among others is a whole sentence: click would cut it at the terminal's width."""

    def get_short_help_str(self, limit: int = 0) -> str:
        return super().get_short_help_str(_SENTENCE)


class Group(Command, click.Group):
    """Commands that belong together."""


@dataclass(frozen=True)
class Output:
    """Answers go to stdout, progress and errors to stderr.

    Attributes
    ----------
    target : str
        Such as ``domino`` or ``domino:/NAME``.
    as_json : bool
        One JSON document on stdout in place of tables.
    """

    target: str
    as_json: bool

    def open(self, *, recover: bool = True) -> Controller:
        """Return the verbs of the data plane.

        Parameters
        ----------
        recover : bool
            Whether to finish or undo what a killed command left, and say so.
        """
        from mlflow_domino.controller import Controller  # here: --help and completion need no records

        return Controller.open(self.target, say=self.say, recover=recover)

    def say(self, line: str) -> None:
        click.echo(line, err=True)

    def document(self, document: Any) -> None:
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))

    def answer(self, text: str, document: Any) -> None:
        """Write `text`, or `document` with ``--json``."""
        if self.as_json:
            self.document(document)
        elif text:
            click.echo(text)

    def table(
        self, names: Sequence[str], rows: Sequence[Sequence[object]], documents: Sequence[Any], none: str
    ) -> None:
        """Write a table, a list of documents with ``--json``, or what to say when there is nothing."""
        if self.as_json:
            self.document(list(documents))
        elif not rows:
            self.say(none)
        else:
            width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
            click.echo(table(names, rows, width=width))

    def pairs(self, rows: Sequence[tuple[str, object]]) -> None:
        click.echo(pairs(rows))


def command(group: click.Group, name: str, **options: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a function a command with ``-t`` and ``--json``; it gets an `Output` first."""

    def decorate(function: Callable[..., Any]) -> click.Command:
        @click.option("-t", "--target", default=None, metavar="URI", help="Data plane: domino, or domino:/NAME.")
        @click.option("--json", "as_json", is_flag=True, help="Write JSON.")
        @functools.wraps(function)
        def run(*arguments: Any, target: str | None, as_json: bool, **values: Any) -> Any:
            chosen = target or click.get_current_context().find_root().params.get("target") or "domino"
            return function(Output(str(chosen), as_json), *arguments, **values)

        return group.command(name, cls=Command, **options)(run)

    return decorate


def report(error: DominoError, *, as_json: bool) -> None:
    """Write an error to stderr."""
    if as_json:
        document = {"error": {"message": error.message, "code": error.code, "log_tail": error.log_tail}}
        click.echo(json.dumps(document, ensure_ascii=False), err=True)
    else:
        click.echo(f"Error: {error}", err=True)


def _names(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the endpoints whose names begin so, for the shell; nothing when that cannot be told."""
    from mlflow_domino.home import Home
    from mlflow_domino.store import SqliteRecords

    home = Home.find()
    if not home.database.is_file():
        return []
    try:
        return [e.name for e in SqliteRecords(home).endpoints() if e.name.startswith(incomplete)]
    except DominoError:
        return []


def endpoint_argument(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the argument that names an endpoint, by name or id."""
    return click.argument("endpoint", shell_complete=_names, **options)
