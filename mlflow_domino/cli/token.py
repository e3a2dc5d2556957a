"""`mlflow-domino token …`: callers' tokens."""

from __future__ import annotations

import click

from mlflow_domino.cli.output import Group, Output, command, endpoint_argument
from mlflow_domino.cli.tables import local_time

__all__ = ["add_to"]


@click.group(cls=Group)
def token() -> None:
    """Tokens of callers; several are valid at once, so that they can be changed one by one."""


def add_to(root: click.Group) -> None:
    root.add_command(token)


@command(token, "create")
@endpoint_argument()
@click.argument("name")
def create(out: Output, endpoint: str, name: str) -> None:
    """Make a token, and write it to stdout, this once; it is valid when this returns."""
    from mlflow_domino import documents

    record, secret = out.open().create_token(endpoint, name)
    if not out.as_json:
        out.say(f"Token {record.name!r} of {endpoint} is valid everywhere; it is shown this once:")
    out.answer(secret, {**documents.token(record), "token": secret})


@command(token, "list")
@endpoint_argument()
def list_(out: Output, endpoint: str) -> None:
    """List tokens by name; what they are is known to nobody but their owners."""
    from mlflow_domino import documents

    tokens = out.open().tokens(endpoint)
    rows = [(known.name, known.id, local_time(known.created_ms)) for known in tokens]
    out.table(
        ("NAME", "ID", "CREATED"),
        rows,
        [documents.token(known) for known in tokens],
        f"{endpoint} has no token, so that nobody can call it: `mlflow-domino token create {endpoint} NAME`.",
    )


@command(token, "revoke")
@endpoint_argument()
@click.argument("token")
def revoke(out: Output, endpoint: str, token: str) -> None:
    """End a token, by name or id; it is refused everywhere when this returns. One that is none is no error."""
    controller = out.open()
    known = [t for t in controller.tokens(endpoint) if token in (t.name, t.id)]
    controller.revoke_token(endpoint, token)
    text = f"Token {token!r} of {endpoint} is refused everywhere."
    out.answer(text if known else f"{endpoint} has no token {token!r}.", {"name": token, "revoked": bool(known)})
