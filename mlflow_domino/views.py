"""Endpoints as their owners want to see them: records, and what is really there."""

from __future__ import annotations

from dataclasses import dataclass

from mlflow_domino.data_planes.base import DataPlane, Observation
from mlflow_domino.models import Endpoint, Status, Target, Version
from mlflow_domino.store import Records

__all__ = ["EndpointView", "VersionView", "look"]


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


def look(plane: DataPlane, records: Records, endpoint: Endpoint) -> EndpointView:
    """Return an endpoint with the truth about each of its versions."""
    versions = records.versions(endpoint.id)
    seen = plane.observe(versions)
    views = tuple(VersionView(v, _truth(v, s), _routes(endpoint, v)) for v, s in zip(versions, seen, strict=True))
    current = next((v for v in views if v.version.id == endpoint.latest), views[-1] if views else None)
    pending = next((o.verb for o in records.operations() if o.endpoint_id == endpoint.id), "")
    status, reason = (current.seen.status, current.seen.reason) if current else (Status.STOPPED, "no version yet")
    return EndpointView(endpoint, plane.url() + _path(endpoint), status, reason, pending, current, views)


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
