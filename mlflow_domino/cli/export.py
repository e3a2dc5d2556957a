"""`mlflow-domino endpoint export`: a version's image, for another registry."""

from __future__ import annotations

import sys

import click

from mlflow_domino.cli.endpoint import endpoint as group
from mlflow_domino.cli.output import Output, command, endpoint_argument
from mlflow_domino.errors import InvalidInput

__all__ = ["add_to"]


def add_to(_root: click.Group) -> None:
    """Nothing more to do: the command is in its group."""


@command(group, "export")
@endpoint_argument()
@click.argument("image")
@click.option("--version", "number", type=int, help="Version; without it, the one behind `latest`.")
@click.option("--username", help="For the registry, instead of what `docker login` keeps; the password comes by stdin.")
def export(out: Output, endpoint: str, image: str, *, number: int | None, username: str | None) -> None:
    """Push a version's image as REGISTRY/NAME:TAG; it runs anywhere by `docker run`, with a token that you choose."""
    user = None
    if username:
        password = (
            click.prompt("Password", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.read()
        ).strip()
        if not password:
            raise InvalidInput("export: --username is given, and no password comes by standard input.")
        user = (username, password)
    digest = out.open().export(endpoint, image, number, user=user)
    out.answer(
        f"{image} is pushed. To run it:\n"
        '  docker run -p 8080:8080 -e DOMINO_TOKEN_SHA256="$(printf %s "$TOKEN" | sha256sum | cut -c -64)" ' + image,
        {"image": image, "digest": digest},
    )
