"""`mlflow-domino predictions …`: what waits, runs and has ended in an asynchronous endpoint's queue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mlflow_domino.cli.output import Group, Output, command, endpoint_argument

if TYPE_CHECKING:
    from mlflow_domino.asynchronous import Predictions

__all__ = ["add_to"]

_STATUSES = ("queued", "running", "succeeded", "failed", "cancelled")


@click.group(cls=Group)
def predictions() -> None:
    """Predictions of asynchronous endpoints: their queue, and their answers."""


def add_to(root: click.Group) -> None:
    root.add_command(predictions)


@command(predictions, "list")
@endpoint_argument()
@click.option("--status", type=click.Choice(_STATUSES), help="Only those in this state.")
@click.option("-n", "--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="At most so many.")
@click.option("--before", default="", metavar="ID", help="Only those submitted before this one: the next page.")
def list_(out: Output, endpoint: str, status: str | None, limit: int, before: str) -> None:
    """List predictions, newest first."""
    page = _of(out, endpoint).list(status=status or "", limit=limit, before=before)
    if out.as_json:
        out.document(page)
        return
    found = page["predictions"]
    rows = [
        (
            p["asyncPredictionId"],
            _state(p),
            p["priority"],
            p["submitted"],
            p["finished"],
            "; ".join(p.get("errors", ())),
        )
        for p in found
    ]
    names = ("PREDICTION", "STATE", "PRIORITY", "SUBMITTED", "FINISHED", "ERRORS")
    out.table(names, rows, found, f"{endpoint} has no such predictions.")
    if page["next"]:
        out.say(f"more: --before {page['next']}")


@command(predictions, "show")
@endpoint_argument()
@click.argument("prediction")
def show(out: Output, endpoint: str, prediction: str) -> None:
    """Show a prediction: its answer, its attempts, its webhook."""
    found = _of(out, endpoint).show(prediction)
    if out.as_json:
        out.document(found)
        return
    out.pairs([(name, _text(value)) for name, value in found.items()])


@command(predictions, "cancel")
@endpoint_argument()
@click.argument("prediction")
def cancel(out: Output, endpoint: str, prediction: str) -> None:
    """Cancel a prediction; one that runs is stopped, where that can be done."""
    told = _of(out, endpoint).cancel(prediction)
    state = "is being stopped" if told.get("cancelling") else "is cancelled"
    out.answer(f"Prediction {prediction} {state}.", told)


@command(predictions, "retry")
@endpoint_argument()
@click.argument("prediction")
def retry(out: Output, endpoint: str, prediction: str) -> None:
    """Run a prediction again that failed or was cancelled."""
    out.answer(f"Prediction {prediction} is queued again.", _of(out, endpoint).retry(prediction))


def _of(out: Output, endpoint: str) -> Predictions:
    from mlflow_domino.asynchronous import administered

    controller = out.open()
    return administered(controller, controller.endpoint(endpoint))


def _state(line: dict[str, Any]) -> str:
    """Return the state of a line, and how far the model is where it says so."""
    progress = line.get("progress") or {}
    fraction = progress.get("fraction")
    return " ".join(filter(None, (line["phase"], "" if fraction is None else f"{fraction:.0%}")))


def _text(value: Any) -> str:
    import json

    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
