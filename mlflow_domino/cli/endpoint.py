"""`mlflow-domino endpoint …`: endpoints and their versions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from mlflow_domino.cli.output import Group, Output, command, endpoint_argument
from mlflow_domino.cli.tables import local_time
from mlflow_domino.errors import InvalidInput

if TYPE_CHECKING:
    from mlflow_domino.controller import Controller
    from mlflow_domino.views import EndpointView

__all__ = ["add_to", "described", "parse_config", "settings_option", "show_endpoint", "write_endpoints"]


@click.group(cls=Group)
def endpoint() -> None:
    """Endpoints and their versions."""


def add_to(root: click.Group) -> None:
    root.add_command(endpoint)


def write_endpoints(out: Output, controller: Controller, views: list[EndpointView]) -> None:
    """Write the table of endpoints, with a column for queues where one of them has one."""
    queued = any(v.endpoint.settings.is_async for v in views)
    told = described(controller, views)
    rows = [
        (
            v.endpoint.name,
            _status(v),
            _number(v),
            _replicas(v),
            *([_queue(d)] if queued else []),
            v.url,
            v.reason or None,
        )
        for v, d in zip(views, told, strict=True)
    ]
    name = controller.plane.name
    target = "domino" if name == "local" else f"domino:/{name}"
    out.table(
        ("NAME", "STATUS", "VERSION", "REPLICAS", *(["QUEUE"] if queued else []), "URL", "REASON"),
        rows,
        told,
        f"There is no endpoint yet: `mlflow deployments create -t {target} --name NAME -m MODEL` makes one.",
    )


def described(controller: Controller, views: list[EndpointView]) -> list[dict[str, Any]]:
    """Return the documents of endpoints, and what waits for the asynchronous ones."""
    from mlflow_domino import documents
    from mlflow_domino.asynchronous import depth_of

    return [
        {**documents.endpoint(v), **({"queue": depth_of(controller, v)} if v.endpoint.settings.is_async else {})}
        for v in views
    ]


def show_endpoint(out: Output, controller: Controller, view: EndpointView) -> None:
    """Write all that is known about an endpoint."""
    from mlflow_domino import documents
    from mlflow_domino.config import Settings, settings_to_json

    (told,) = described(controller, [view])
    if out.as_json:
        out.document(told)
        return
    defaults = settings_to_json(Settings())
    changed = {k: v for k, v in settings_to_json(view.endpoint.settings).items() if v != defaults[k]}
    current = view.current
    out.pairs(
        [
            ("Name", view.endpoint.name),
            ("Id", view.endpoint.id),
            ("Status", _status(view)),
            ("Reason", view.reason),
            ("URL", view.url),
            ("Data plane", view.endpoint.data_plane),
            ("Version", _number(view)),
            ("Source", documents.describe_source(current.version) if current else None),
            ("Replicas", _replicas(view)),
            ("Queue", _queue(told)),
            ("Predictions", _ended(told)),
            ("Python", current.version.artifact.python_version if current and current.version.artifact else None),
            ("Notes", "\n".join(current.version.artifact.notes) if current and current.version.artifact else None),
            ("Settings", "\n".join(f"{k}={_plain(v)}" for k, v in changed.items())),
            ("Created", local_time(view.endpoint.created_ms)),
            ("Log", current.seen.log_tail if current else None),
        ]
    )


@command(endpoint, "list")
def list_(out: Output) -> None:
    """List endpoints, with what they really do now."""
    controller = out.open()
    write_endpoints(out, controller, controller.endpoints())


@command(endpoint, "show")
@endpoint_argument()
def show(out: Output, endpoint: str) -> None:
    """Show an endpoint with its settings, and why it does not run."""
    controller = out.open()
    show_endpoint(out, controller, controller.endpoint(endpoint))


@command(endpoint, "versions")
@endpoint_argument()
def versions(out: Output, endpoint: str) -> None:
    """List the versions of an endpoint."""
    from mlflow_domino import documents

    view = out.open().endpoint(endpoint)
    rows = [
        (
            v.version.number,
            v.seen.status.value,
            ",".join(v.routes) or None,
            local_time(v.version.created_ms),
            documents.describe_source(v.version),
            v.seen.reason,
        )
        for v in view.versions
    ]
    names = ("VERSION", "STATUS", "ROUTES", "CREATED", "SOURCE", "REASON")
    out.table(names, rows, [documents.version(v) for v in view.versions], f"{view.endpoint.name} has no version yet.")


settings_option = click.option(
    "-C",
    "--config",
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting, such as replicas=2; may be repeated. `mlflow deployments help -t domino` lists them.",
)


@command(endpoint, "create")
@endpoint_argument(metavar="NAME")
@click.option("-m", "--model-uri", metavar="URI", help="Model or project; without it the endpoint has no version yet.")
@settings_option
def create(out: Output, endpoint: str, model_uri: str | None, config: tuple[str, ...]) -> None:
    """Make an endpoint, and wait until its first version answers."""
    from mlflow_domino import documents

    controller = out.open()
    if model_uri is None:
        controller.create_endpoint(endpoint, parse_config(config))
        view = controller.endpoint(endpoint)
        out.answer(f"{endpoint} has no version yet: `endpoint update {endpoint} -m MODEL`.", documents.deployment(view))
        return
    view, token = controller.create(endpoint, model_uri, parse_config(config))
    out.answer(documents.summary(controller.home, view, token), {**documents.deployment(view), "token": token})


@command(endpoint, "update")
@endpoint_argument()
@click.option("-m", "--model-uri", metavar="URI", help="Model or project; without it the same as now.")
@settings_option
def update(out: Output, endpoint: str, model_uri: str | None, config: tuple[str, ...]) -> None:
    """Publish a new version without dropping a request."""
    _done(out, out.open().update(endpoint, model_uri, parse_config(config)))


@command(endpoint, "delete")
@endpoint_argument()
def delete(out: Output, endpoint: str) -> None:
    """Remove an endpoint with its versions and tokens; one that is not there is no error."""
    controller = out.open()
    known = any(endpoint in (e.name, e.id) for e in controller.records.endpoints())
    controller.delete(endpoint)
    text = f"{endpoint} is gone." if known else f"There was no endpoint {endpoint!r}."
    out.answer(text, {"name": endpoint, "deleted": known})


@command(endpoint, "start")
@endpoint_argument()
def start(out: Output, endpoint: str) -> None:
    """Run a stopped endpoint again."""
    _done(out, out.open().start(endpoint))


@command(endpoint, "stop")
@endpoint_argument()
def stop(out: Output, endpoint: str) -> None:
    """Finish the requests in flight, answer 503 to new ones, end the replicas."""
    _done(out, out.open().stop(endpoint))


def _number_argument(function: Callable[..., None]) -> Callable[..., None]:
    return click.argument("version", type=click.IntRange(min=1), required=False)(function)


@command(endpoint, "promote")
@endpoint_argument()
@_number_argument
def promote(out: Output, endpoint: str, version: int | None) -> None:
    """Point labels/prod at a version, the latest one by default."""
    _done(out, out.open().promote(endpoint, version))


@command(endpoint, "rollback")
@endpoint_argument()
@_number_argument
def rollback(out: Output, endpoint: str, version: int | None) -> None:
    """Point latest at an older version, the one before by default."""
    _done(out, out.open().rollback(endpoint, version))


@command(endpoint, "scale")
@endpoint_argument()
@click.argument("replicas", type=click.IntRange(min=1))
def scale(out: Output, endpoint: str, replicas: int) -> None:
    """Run so many replicas of each routed version."""
    _done(out, out.open().scale(endpoint, replicas))


def _done(out: Output, view: EndpointView) -> None:
    from mlflow_domino import documents

    routes = [f"{route} is version {v.version.number}" for v in view.versions for route in v.routes]
    said = f"{view.endpoint.name}: {_status(view)}, {', '.join(routes) or 'no version'}, {view.url}"
    out.answer(said, documents.deployment(view))


def parse_config(config: tuple[str, ...]) -> dict[str, str]:
    """Read what ``-C`` was given, as MLflow's CLI does."""
    parsed: dict[str, str] = {}
    for item in config:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise InvalidInput(f"-C {key[:60]}: KEY=VALUE is wanted.")
        if key in parsed:
            raise InvalidInput(f"-C {key}: set twice.")
        parsed[key] = value
    return parsed


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _status(view: EndpointView) -> str:
    return f"{view.status.value} ({view.pending} under way)" if view.pending else view.status.value


def _number(view: EndpointView) -> int | None:
    return view.current.version.number if view.current else None


def _queue(told: dict[str, Any]) -> str | None:
    depth = told.get("queue")
    if depth is None:
        return None
    age = f", oldest {depth['oldest_age_s']:.0f} s" if depth["oldest_age_s"] is not None else ""
    return f"{depth['queued'] + depth['delayed']} wait{age}, {depth['running']} run"


def _ended(told: dict[str, Any]) -> str | None:
    """Say what became of predictions so far; None where nobody knows, or there were none."""
    counts = told.get("queue") or {}
    words = {
        "succeeded": "succeeded", "failed": "failed", "cancelled": "cancelled", "expired": "expired in the queue",
        "retried": "runs repeated", "webhook_failures": "calls of webhooks failed",
    }  # fmt: skip
    parts = [f"{counts[name]} {word}" for name, word in words.items() if counts.get(name)]
    mean_s = counts.get("mean_time_in_queue_s")
    return ", ".join([*parts, *([f"{mean_s:.2g} s in the queue on average"] if mean_s is not None else [])]) or None


def _replicas(view: EndpointView) -> str | None:
    current = view.current
    return f"{current.seen.ready}/{current.version.replicas}" if current else None
