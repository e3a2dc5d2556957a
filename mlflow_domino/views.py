"""Endpoints as their owners want to see them: records, and what is really there."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlflow_domino.data_planes.base import DataPlane, Observation
from mlflow_domino.errors import Unavailable, Unreachable
from mlflow_domino.home import Home
from mlflow_domino.memory import Memory
from mlflow_domino.models import Endpoint, Status, Target, Version
from mlflow_domino.store import Records

__all__ = ["EndpointView", "Sight", "VersionView"]

_SILENCE_S = 2.0


@dataclass(frozen=True)
class VersionView:
    """A version and what is really there of it."""

    version: Version
    seen: Observation
    routes: tuple[str, ...]


@dataclass(frozen=True)
class EndpointView:
    """An endpoint as its owner wants to see it.

    Attributes
    ----------
    url : str
        Of the `latest` route, or where an asynchronous endpoint takes predictions.
    status, reason : Status, str
        Of the version behind `latest`, or of the newest one where none was published yet.
    pending : str
        The verb that is at work on it now, or empty.
    current : VersionView or None
        The version that `status` is about.
    """

    endpoint: Endpoint
    url: str
    status: Status
    reason: str
    pending: str
    current: VersionView | None
    versions: tuple[VersionView, ...]


class Sight:
    """Looks at the endpoints of a data plane; what was seen before is told while it does not answer.

    Parameters
    ----------
    home : Home
    plane : DataPlane
    records : Records
    """

    def __init__(self, home: Home, plane: DataPlane, records: Records) -> None:
        self._plane = plane
        self._records = records
        self._silence: tuple[Unreachable, float] | None = None
        # Records in the home are there whatever the data plane does.
        self._memory = Memory(home, plane.name) if plane.own_records() is not None else None

    def if_answered(self, do: Callable[[], None]) -> None:
        """Do something if the data plane answers; if it does not, know that for a moment, so that nobody waits twice."""
        try:
            self._plane.reach()
            do()
            self._silence = None
        except Unreachable as error:
            self._silence = error, time.monotonic()

    def silence(self) -> str:
        """Say why the data plane does not answer; empty where it does."""
        try:
            self._check()
            self._plane.reach()
        except Unreachable as error:
            return error.message
        return ""

    def one(self, name: str, find: Callable[[str], Endpoint]) -> EndpointView:
        """Return an endpoint with the truth about each of its versions; as it was last seen, where nothing answers.

        Parameters
        ----------
        name : str
            Or its id.
        find : callable
            Gives the endpoint's record.
        """
        try:
            self._check()
            view = self._look(find(name), self._plane.obstacle())
        except Unreachable as error:
            for view in self._remembered(error.message):
                if name in (view.endpoint.name, view.endpoint.id):
                    return view
            raise
        self._keep([view], all_of_them=False)
        return view

    def all(self) -> list[EndpointView]:
        """Return all endpoints of the data plane, as `one` does."""
        try:
            self._check()
            endpoints = [e for e in self._records.endpoints() if e.data_plane == self._plane.name]
            obstacle = self._plane.obstacle() if endpoints else ""
            views = [self._look(endpoint, obstacle) for endpoint in endpoints]
        except Unreachable as error:
            return self._remembered(error.message)
        self._keep(views, all_of_them=True)
        return views

    def forget(self, endpoint_id: str) -> None:
        if self._memory is not None:
            self._memory.forget(endpoint_id)

    def _check(self) -> None:
        if self._silence is not None and time.monotonic() - self._silence[1] < _SILENCE_S:
            raise self._silence[0]
        self._silence = None

    def _remembered(self, why: str) -> list[EndpointView]:
        """Return the endpoints as they were last seen, all of them `UNREACHABLE`.

        Parameters
        ----------
        why : str
            The data plane does not answer.
        """
        found = []
        for seen in self._memory.recall() if self._memory is not None else ():
            lost = Observation(Status.UNREACHABLE, f"{why} Last seen at {seen.when}.")
            endpoint = dataclasses.replace(seen.endpoint, data_plane=self._plane.name)
            views = tuple(VersionView(v, _truth(v, lost), _routes(endpoint, v)) for v in seen.versions)
            found.append(
                EndpointView(endpoint, seen.url, lost.status, lost.reason, "", _current(endpoint, views), views)
            )
        return found

    def _keep(self, views: Sequence[EndpointView], *, all_of_them: bool) -> None:
        if self._memory is not None:
            seen = [(v.endpoint, [one.version for one in v.versions], v.url) for v in views]
            self._memory.keep(seen, all_of_them=all_of_them)

    def _look(self, endpoint: Endpoint, obstacle: str) -> EndpointView:
        versions = self._records.versions(endpoint.id)
        observed = self._plane.observe(versions)
        seen = [_truth(v, _behind(obstacle, s)) for v, s in zip(versions, observed, strict=True)]
        views = tuple(VersionView(v, s, _routes(endpoint, v)) for v, s in zip(versions, seen, strict=True))
        current = _current(endpoint, views)
        pending = next((o.verb for o in self._records.operations() if o.endpoint_id == endpoint.id), "")
        status, reason = (current.seen.status, current.seen.reason) if current else (Status.STOPPED, "no version yet")
        return EndpointView(endpoint, self._url(endpoint), status, reason, pending, current, views)

    def _url(self, endpoint: Endpoint) -> str:
        try:
            return self._plane.url() + _path(endpoint)
        except Unreachable:
            raise
        except Unavailable:  # no gateway, no address: `obstacle` tells
            return ""


def _current(endpoint: Endpoint, views: Sequence[VersionView]) -> VersionView | None:
    return next((v for v in views if v.version.id == endpoint.latest), views[-1] if views else None)


def _behind(obstacle: str, seen: Observation) -> Observation:
    """What is seen of a version that may run as well as it likes: nobody can call it."""
    return dataclasses.replace(seen, status=Status.UNREACHABLE, reason=obstacle) if obstacle else seen


def _path(endpoint: Endpoint) -> str:
    if endpoint.settings.is_async:
        return f"/api/modelApis/async/v1/{endpoint.id}"
    return f"/models/{endpoint.id}/latest/model"


def _truth(version: Version, seen: Observation) -> Observation:
    """What was recorded, for a version that does not run; what is seen, for one that should."""
    if version.target is Target.RUNNING:
        return seen
    return Observation(version.status, version.reason)


def _routes(endpoint: Endpoint, version: Version) -> tuple[str, ...]:
    labels = ["latest"] if version.id == endpoint.latest else []
    if endpoint.settings.routing_mode == "advanced" and version.id == endpoint.promoted:
        labels.append("labels/prod")
    return tuple(labels)
