"""The objects that records are in a namespace: how they are named, labelled, written and read."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from mlflow_domino import secret
from mlflow_domino.config import Secrets
from mlflow_domino.dialect import Manifest
from mlflow_domino.errors import InvalidInput
from mlflow_domino.labels import ENDPOINT_NAME, KIND, labels, tokens_name
from mlflow_domino.models import Endpoint, Operation, Token, Version
from mlflow_domino.written import known, to_text

__all__ = [
    "SCHEMA_VERSION",
    "Tokens",
    "data_of",
    "endpoint_manifest",
    "kind_of_record",
    "lock_name",
    "name_manifest",
    "name_of",
    "operation_manifest",
    "operation_of",
    "revision_of",
    "secrets_manifest",
    "secrets_name",
    "secrets_of",
    "token_documents",
    "tokens_manifest",
    "tokens_of",
    "version_manifest",
]

#: Of the documents in the objects; an older release refuses what a newer one wrote.
SCHEMA_VERSION = 1

#: An object may have 1 MiB, with all that is around our text.
_LARGEST = 900 << 10

Tokens = list[dict[str, Any]]

# ---- written -------------------------------------------------------------------------------------------------------


def endpoint_manifest(endpoint: Endpoint) -> Manifest:
    data = {"endpoint.json": to_text(endpoint), "schema": str(SCHEMA_VERSION)}
    return _config_map(f"endpoint-{endpoint.id}", labels("endpoint", endpoint=endpoint.id), data, endpoint.name)


def version_manifest(version: Version) -> Manifest:
    own = labels("version", endpoint=version.endpoint_id, version=version.id)
    data = {"version.json": to_text(version), "schema": str(SCHEMA_VERSION)}
    return _config_map(f"version-{version.id}", own, data)


def name_manifest(endpoint: Endpoint, *, taken: bool) -> Manifest:
    """Return the object that makes a name unique; `taken` once the endpoint is there."""
    digest = hashlib.sha256(endpoint.name.encode()).hexdigest()[:24]
    data = {"name": endpoint.name, "endpoint": endpoint.id, "state": "taken" if taken else "reserved"}
    return _config_map(f"name-{digest}", labels("name", endpoint=endpoint.id), data, endpoint.name)


def operation_manifest(operation: Operation) -> Manifest:
    own = labels("operation", endpoint=operation.endpoint_id)
    text = json.dumps(vars(operation), sort_keys=True)
    return _config_map(f"operation-{operation.endpoint_id}", own, {"operation.json": text})


def secrets_manifest(of: Endpoint | Version, secrets: Secrets, *, plain: bool = False) -> Manifest:
    """Return the Secret with what is secret of an endpoint or a version; `plain` for who fills values in by hand."""
    belongs = {"endpoint": of.id} if isinstance(of, Endpoint) else {"endpoint": of.endpoint_id, "version": of.id}
    text = json.dumps(secret.to_document(secrets), sort_keys=True, ensure_ascii=not plain)
    made = _secret(secrets_name(of), labels("secrets", **belongs), {"secrets.json": text})
    return {**{k: v for k, v in made.items() if k != "data"}, "stringData": {"secrets.json": text}} if plain else made


def tokens_manifest(endpoint_id: str, tokens: Tokens) -> Manifest:
    """Return the Secret with tokens as records; what pods read of them is another key of it."""
    own = labels("tokens", endpoint=endpoint_id)
    return _secret(tokens_name(endpoint_id), own, {"records.json": json.dumps(tokens, sort_keys=True)})


def secrets_name(of: Endpoint | Version) -> str:
    return f"{'endpoint' if isinstance(of, Endpoint) else 'version'}-{of.id}-secrets"


def lock_name(name: str) -> str:
    """Return the name of the Lease of a lock."""
    simple = re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,200}[a-z0-9])?", name)
    return f"lock-{name if simple else hashlib.sha256(name.encode()).hexdigest()[:24]}"


def _config_map(name: str, own: Mapping[str, str], data: Mapping[str, str], note: str = "") -> Manifest:
    meta: Manifest = {"name": name, "labels": dict(own)}
    if note:
        meta["annotations"] = {ENDPOINT_NAME: note}
    return _checked({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": dict(data)})


def _secret(name: str, own: Mapping[str, str], data: Mapping[str, str]) -> Manifest:
    written = {key: base64.b64encode(text.encode()).decode() for key, text in data.items()}
    meta = {"name": name, "labels": dict(own)}
    return _checked({"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": meta, "data": written})


def _checked(manifest: Manifest) -> Manifest:
    size = sum(len(key) + len(text.encode()) for key, text in manifest["data"].items())
    if size > _LARGEST:
        raise InvalidInput(
            f"{manifest['kind']} {name_of(manifest)!r} would have {size >> 10} KiB; a cluster's objects hold {_LARGEST >> 10} "
            "KiB. Shorten what is long, such as the variables' values, lists of files or the description."
        )
    return manifest


# ---- read ----------------------------------------------------------------------------------------------------------


def name_of(one: Mapping[str, Any]) -> str:
    return str(one["metadata"]["name"])


def kind_of_record(one: Mapping[str, Any]) -> str:
    return str((one["metadata"].get("labels") or {}).get(KIND, ""))


def data_of(one: Mapping[str, Any]) -> Mapping[str, str]:
    return one.get("data") or {}


def operation_of(one: Mapping[str, Any]) -> Operation:
    return Operation(**known(Operation, json.loads(data_of(one)["operation.json"])))


def secrets_of(one: Mapping[str, Any]) -> Secrets:
    return secret.of_document(json.loads(_plain(one, "secrets.json")))


def tokens_of(one: Mapping[str, Any]) -> list[Token]:
    return [Token(**known(Token, document)) for document in token_documents(one)]


def token_documents(one: Mapping[str, Any]) -> Tokens:
    read: Tokens = json.loads(_plain(one, "records.json")) if "records.json" in data_of(one) else []
    return read


def revision_of(text: str) -> int:
    """Return a hash of a record's text; 0 is the revision of one that was never written."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:15], 16) + 1


def _plain(one: Mapping[str, Any], key: str) -> str:
    return base64.b64decode(data_of(one)[key]).decode("utf-8")
