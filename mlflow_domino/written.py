"""Records as they are written down, the same text wherever they are kept.

The gateway in a cluster reads them too, so that nothing is imported here that its image lacks.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from mlflow_domino.config import settings_from_json, settings_to_json
from mlflow_domino.models import (
    Artifact,
    Endpoint,
    FileSource,
    RegistrySource,
    Repository,
    Source,
    Status,
    Target,
    Version,
)

__all__ = ["endpoint_of", "known", "to_text", "version_of"]


def to_text(record: Endpoint | Version) -> str:
    """Return a record as JSON, without its revision: that is for where it is kept to tell."""
    fields = {f.name: getattr(record, f.name) for f in dataclasses.fields(record) if f.name != "revision"}
    fields["settings"] = settings_to_json(record.settings)
    for name in ("source", "artifact"):
        if fields.get(name) is not None:
            fields[name] = dataclasses.asdict(fields[name])
    return json.dumps(fields, sort_keys=True)


def known(cls: type, document: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what `cls` has fields for: another release of the same schema version may have written more."""
    names = {f.name for f in dataclasses.fields(cls)}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in document.items() if k in names}


def endpoint_of(text: str, revision: int) -> Endpoint:
    """Read what `to_text` wrote; a damaged text raises ValueError, KeyError, TypeError or AttributeError."""
    document = json.loads(text)
    document["settings"] = settings_from_json(document["settings"])
    document["target"] = Target(document["target"])
    return Endpoint(**known(Endpoint, document), revision=revision)


def version_of(text: str, revision: int) -> Version:
    """As `endpoint_of`."""
    document = json.loads(text)
    document["settings"] = settings_from_json(document["settings"])
    document["source"] = _source(document["source"])
    document["status"] = Status(document["status"])
    document["target"] = Target(document["target"])
    if document.get("artifact") is not None:
        document["artifact"] = Artifact(**known(Artifact, document["artifact"]))
    return Version(**known(Version, document), revision=revision)


def _source(document: Mapping[str, Any]) -> Source:
    if document["kind"] == "Registry":
        return RegistrySource(**known(RegistrySource, document))
    repositories = tuple(Repository(**known(Repository, r)) for r in document.get("repositories", ()))
    return FileSource(**{**known(FileSource, document), "repositories": repositories})
