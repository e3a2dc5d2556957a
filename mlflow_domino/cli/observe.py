"""`mlflow-domino logs` and `predict`: what an endpoint wrote, and what it answers."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlflow_domino.cli.output import INTERRUPTED, Output, command, endpoint_argument
from mlflow_domino.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from mlflow_domino.controller import Controller
    from mlflow_domino.logs import Line
    from mlflow_domino.models import Version

__all__ = ["add_to"]

_POLL_S = 0.2
#: While following: how often a new version, such as an update makes, is looked for.
_VERSION_POLL_S = 1.0


def add_to(root: click.Group) -> None:
    _add_logs(root)
    _add_predict(root)


def _add_logs(root: click.Group) -> None:
    @command(root, "logs")
    @endpoint_argument()
    @click.option("--version", "number", type=click.IntRange(min=1), help="Version; by default the one behind latest.")
    @click.option("--replica", type=click.IntRange(min=0), help="Replica, from 0; by default all.")
    @click.option("--build", is_flag=True, help="The build's log instead of the replicas'.")
    @click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on, until Ctrl-C.")
    @click.option("--since", metavar="TIME", help="Only what was written in the last 90s, 10m, 2h, 1d.")
    @click.option("-n", "--lines", type=click.IntRange(min=0), help="Only so many of the last lines.")
    def logs(
        out: Output,
        endpoint: str,
        *,
        number: int | None,
        replica: int | None,
        build: bool,
        follow: bool,
        since: str | None,
        lines: int | None,
    ) -> None:
        """Write what an endpoint's replicas or its build wrote, in the order of time."""
        from mlflow_domino.logs import parse_duration

        since_ms = None if since is None else int((time.time() - parse_duration(since)) * 1000)
        _Logs(out, out.open(), endpoint, number, replica, build).write(since_ms, lines, follow=follow)


def _add_predict(root: click.Group) -> None:
    @command(root, "predict")
    @endpoint_argument()
    @click.option("-d", "--data", metavar="JSON", help="Body, or @FILE, or - for stdin (the default when it is piped).")
    def predict(out: Output, endpoint: str, data: str | None) -> None:
        """Call an endpoint, with the token that its creator has here or $MLFLOW_DOMINO_TOKEN.

        Of an asynchronous endpoint, this waits for the answer.
        """
        from mlflow_domino import asynchronous, invocation

        body = invocation.body_of(_body(data))
        controller = out.open()
        view = controller.endpoint(endpoint)
        if view.endpoint.settings.is_async:
            out.document(asynchronous.Predictions(controller.home, view).run(body))
        else:
            out.document(invocation.call(controller.home, view, body))


def _body(data: str | None) -> str:
    if data is None and sys.stdin.isatty():
        raise InvalidInput(
            """predict: name the body, such as -d '{"data": {"x": 1}}', -d @body.json or -d - for stdin."""
        )
    file = Path(data[1:]) if data is not None and data.startswith("@") else None
    if file is None and data not in (None, "-"):
        return data
    try:
        return sys.stdin.read() if file is None else file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"predict: {file or 'stdin'} cannot be read: {error}.") from error


@dataclass(frozen=True)
class _Logs:
    """The logs that one call of `logs` is about."""

    out: Output
    controller: Controller
    endpoint: str
    number: int | None
    replica: int | None
    build: bool

    def write(self, since_ms: int | None, last: int | None, *, follow: bool) -> None:
        from mlflow_domino import logs

        if follow:
            secrets: set[str] = set()
            paths = self._latest_paths(secrets)
            news = logs.follow(paths, since_ms=since_ms or 0, last=last, values=secrets, wait=_wait)
            try:
                self._show(news)
            except KeyboardInterrupt:  # the way to end it: nothing to be told
                raise click.exceptions.Exit(INTERRUPTED) from None
            return
        version = self._version()
        self._show(self._lines(version, since_ms, last))

    def _lines(self, version: Version, since_ms: int | None, last: int | None) -> list[Line]:
        from mlflow_domino import logs

        paths = self._paths(version)
        if not any(path.exists() for path in paths):
            what = "build" if self.build else "replica" if self.replica is None else f"replica {self.replica}"
            raise NotFound(f"Version {version.number} of {self.endpoint!r} has no log of its {what}.")
        secrets = self._secrets(version)
        lines = [line for path in paths for line in logs.read(path, since_ms=since_ms, values=secrets)]
        lines.sort(key=lambda line: line.time_ms)
        return lines if last is None else lines[max(0, len(lines) - last) :]

    def _version(self) -> Version:
        return self.controller.find_version(self.endpoint, self.number)

    def _secrets(self, version: Version) -> set[str]:
        return set(self.controller.records.secrets(version).variables.values())

    def _paths(self, version: Version) -> list[Path]:
        return self.controller.plane.logs(version, build=self.build, replica=self.replica)

    def _latest_paths(self, secrets: set[str]) -> Callable[[], Iterable[Path]]:
        """Return a function for `follow`: the logs of the version that is behind latest by then; its secrets are added."""
        known: list[Path] = []
        seen: set[str] = set()
        looked_s = float("-inf")

        def paths() -> list[Path]:
            nonlocal known, looked_s
            if time.monotonic() - looked_s >= _VERSION_POLL_S:
                version = self._version()
                if version.id not in seen:
                    seen.add(version.id)
                    secrets.update(self._secrets(version))
                known, looked_s = list(dict.fromkeys([*known, *self._paths(version)])), time.monotonic()
            return known

        return paths

    def _show(self, lines: Iterable[Line]) -> None:
        """Write lines, with the name of their log in front as soon as there are several."""
        for line in lines:
            if self.out.as_json:
                from mlflow_domino.documents import time_of

                document = {"time": time_of(line.time_ms), "log": line.path.stem, "line": line.text}
                click.echo(json.dumps(document, ensure_ascii=False))
            elif self.build or self.replica is not None:
                click.echo(line.text)
            else:
                click.echo(f"{line.path.stem.removeprefix('replica-')} | {line.text}")


def _wait() -> bool:
    sys.stdout.flush()
    time.sleep(_POLL_S)
    return True
