"""What is told about endpoints, versions and tokens: documents for programs, and the summary for who just deployed."""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any

from mlflow_domino import invocation
from mlflow_domino.config import settings_to_json
from mlflow_domino.home import Home
from mlflow_domino.models import FileSource, RegistrySource, Source, Token, Version
from mlflow_domino.views import EndpointView, VersionView

__all__ = ["deployment", "endpoint", "summary", "time_of", "token", "version"]


def time_of(ms: int) -> str:
    """Return a time as ISO 8601, in UTC."""
    moment = datetime.datetime.fromtimestamp(ms / 1000, tz=datetime.timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def deployment(view: EndpointView) -> dict[str, Any]:
    """Return what MLflow's verbs return of an endpoint."""
    current = view.current.version if view.current else None
    return {
        "name": view.endpoint.name,
        "flavor": current.source.flavor if current else "",
        "id": view.endpoint.id,
        "url": view.url,
        "version": current.number if current else None,
        "version_id": current.id if current else None,
        "status": view.status.value,
        "reason": view.reason,
        "data_plane": view.endpoint.data_plane,
        "source": current.source.uri if current else None,
    }


def endpoint(view: EndpointView) -> dict[str, Any]:
    """Return everything about an endpoint that is no secret."""
    current = view.current
    return {
        **deployment(view),
        "pending": view.pending,
        "target": view.endpoint.target.value,
        "created": time_of(view.endpoint.created_ms),
        "replicas": current.version.replicas if current else 0,
        "replicas_ready": current.seen.ready if current else 0,
        "log_tail": current.seen.log_tail if current else "",
        "settings": settings_to_json(view.endpoint.settings),
        "versions": [version(v) for v in view.versions],
    }


def version(view: VersionView) -> dict[str, Any]:
    made = view.version
    artifact = made.artifact
    return {
        "number": made.number,
        "id": made.id,
        "status": view.seen.status.value,
        "reason": view.seen.reason,
        "routes": list(view.routes),
        "replicas": made.replicas if made.target.value == "running" else 0,
        "replicas_ready": view.seen.ready,
        "created": time_of(made.created_ms),
        "source": _source(made.source),
        "python_version": artifact.python_version if artifact else None,
        "environment": artifact.environment if artifact else None,
        "notes": list(artifact.notes) if artifact else [],
    }


def _source(source: Source) -> dict[str, Any]:
    if isinstance(source, RegistrySource):
        return {
            "kind": source.kind,
            "uri": source.uri,
            "resolved_uri": source.resolved_uri,
            "registered_model_name": source.name,
            "registered_model_version": source.version,
            "flavor": source.flavor,
        }
    return _file_source(source)


def _file_source(source: FileSource) -> dict[str, Any]:
    return {
        "kind": source.kind,
        "uri": source.uri,
        "file": source.file,
        "function": source.function,
        "commit": source.commit,
        "dirty": list(source.dirty),
        "repositories": [dataclasses.asdict(repository) for repository in source.repositories],
    }


def describe_source(made: Version) -> str:
    """Return where a version comes from, in a few words."""
    source = made.source
    if isinstance(source, RegistrySource):
        return source.resolved_uri if source.resolved_uri == source.uri else f"{source.resolved_uri} ({source.uri})"
    commit = f" at {source.commit[:10]}" if source.commit else ""
    dirty = f" and {len(source.dirty)} changed" if source.dirty else ""
    attached = "".join(f", {r.folder} {r.uri} at {r.commit[:10]}" for r in source.repositories)
    return f"{source.uri}{commit}{dirty}: {source.file}, {source.function}{attached}"


def token(known: Token) -> dict[str, Any]:
    return {"id": known.id, "name": known.name, "created": time_of(known.created_ms)}


def summary(home: Home, view: EndpointView, secret: str) -> str:
    """Return what whoever created an endpoint sees: its URL, its token, and a call to copy."""
    number = view.current.version.number if view.current else None
    return (
        f"\nEndpoint {view.endpoint.name!r}, version {number}: {view.status.value}\n"
        f"  URL    {view.url}\n"
        f"  token  {secret}   (shown this once)\n\n"
        f"  curl -u {secret}:{secret} -H 'Content-Type: application/json' \\\n"
        f"       -d '{invocation.example(home, view)}' {view.url}\n"
    )
