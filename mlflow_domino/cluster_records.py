"""Records in the objects of a namespace, so that whoever may read those sees the same endpoints.

One ConfigMap each for an endpoint, a version, an operation and a name; Secrets for tokens and for secrets. Every write has
the object's ``resourceVersion`` as its precondition. A record's revision is a hash of its text: others' labels and
annotations are no conflict, and a text that somebody applied by hand is.

What a command that was killed leaves: a name without an endpoint, which the next one to use the name takes over; a Secret
of a version that was never recorded, which goes with its endpoint; an endpoint half removed, of which the endpoint itself
is still there for the next `delete`; locks. `tidy`, with which every command begins, removes names and locks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from mlflow_domino import objects
from mlflow_domino.cluster import Cluster
from mlflow_domino.config import Secrets
from mlflow_domino.dialect import Manifest, replacement
from mlflow_domino.errors import AlreadyExists, Conflict, DominoError, NotFound, Refused, Unsupported
from mlflow_domino.labels import ENDPOINT, KIND, MANAGED, labels, tokens_name
from mlflow_domino.lease import Lease, held, is_free
from mlflow_domino.models import Endpoint, Operation, Token, Version
from mlflow_domino.objects import SCHEMA_VERSION, Tokens, data_of, kind_of_record, name_of, revision_of
from mlflow_domino.store import Records
from mlflow_domino.written import endpoint_of, version_of

__all__ = ["KubernetesRecords"]

_TRIES = 20
#: A name that has no endpoint yet may be about to get one.
_RESERVED_S = 60.0

T = TypeVar("T")
R = TypeVar("R", Endpoint, Version)


class KubernetesRecords(Records):
    """Records in the namespace of a cluster.

    Parameters
    ----------
    cluster : Cluster
    plane : str
        What this machine calls the data plane; others may call it otherwise, and their endpoints are the same.
    """

    def __init__(self, cluster: Cluster, plane: str) -> None:
        self._cluster = cluster
        self._plane = plane
        self._leases: list[Lease] = []

    # ---- endpoints -------------------------------------------------------------------------------------------------

    def endpoints(self) -> list[Endpoint]:
        found = self._list("ConfigMap", "endpoint", "name")
        read = [self._endpoint(one) for one in found if kind_of_record(one) == "endpoint"]
        ids = {e.id for e in read}
        owners = {
            d.get("name"): d.get("endpoint") for d in (data_of(one) for one in found if kind_of_record(one) == "name")
        }
        # Of two with one name, which two commands at once may leave when one is killed, the one that has the name counts.
        kept = [e for e in read if owners.get(e.name) in (None, e.id) or owners[e.name] not in ids]
        return sorted(kept, key=lambda e: e.name)

    def save_endpoint(self, endpoint: Endpoint) -> Endpoint:
        manifest = objects.endpoint_manifest(endpoint)
        thing = f"endpoint {endpoint.name!r}"
        if endpoint.revision:
            self._rewrite(manifest, "endpoint.json", endpoint.revision, thing)
        else:
            self._insert_endpoint(endpoint, manifest)
        return dataclasses.replace(endpoint, revision=revision_of(manifest["data"]["endpoint.json"]))

    def remove_endpoint(self, endpoint_id: str) -> None:
        self._check()
        for one in self._list("Secret", "tokens", "secrets", endpoint=endpoint_id):
            self._cluster.delete("Secret", name_of(one))
        for one in self._list("Lease", "lock", endpoint=endpoint_id):
            self._remove_lease(one)
        order = ("version", "endpoint", "name", "operation")  # an endpoint half removed can still be removed
        found = self._list("ConfigMap", *order, endpoint=endpoint_id)
        for one in sorted(found, key=lambda one: order.index(kind_of_record(one))):
            self._cluster.delete("ConfigMap", name_of(one))

    # ---- versions --------------------------------------------------------------------------------------------------

    def versions(self, endpoint_id: str | None = None) -> list[Version]:
        found = [self._version(one) for one in self._list("ConfigMap", "version", endpoint=endpoint_id or "")]
        return sorted(found, key=lambda v: (v.endpoint_id, v.number))

    def save_version(self, version: Version) -> Version:
        manifest = objects.version_manifest(version)
        thing = f"version {version.number}"
        if version.revision:
            self._rewrite(manifest, "version.json", version.revision, thing)
        else:
            taken = f"Version {version.number} exists already."
            self._create(manifest, taken)
            same = [v for v in self.versions(version.endpoint_id) if v.number == version.number]
            if len(same) > 1:
                self._cluster.delete("ConfigMap", name_of(manifest))
                raise AlreadyExists(taken)
        return dataclasses.replace(version, revision=revision_of(manifest["data"]["version.json"]))

    def remove_version(self, version_id: str) -> None:
        self._check()
        self._cluster.delete("ConfigMap", f"version-{version_id}")
        self._cluster.delete("Secret", f"version-{version_id}-secrets")

    # ---- tokens ----------------------------------------------------------------------------------------------------

    def tokens(self, endpoint_id: str) -> list[Token]:
        found = self._cluster.get("Secret", tokens_name(endpoint_id))
        read = self._parse(found, objects.tokens_of) if found else []
        return sorted(read, key=lambda t: t.created_ms)

    def save_token(self, token: Token) -> None:
        def add(before: Tokens) -> Tokens:
            if token.name in {t["name"] for t in before}:
                raise AlreadyExists(f"A token named {token.name!r} exists; choose another name or revoke it first.")
            return [*before, dataclasses.asdict(token)]

        self._change_tokens(token.endpoint_id, add)

    def remove_token(self, token_id: str) -> None:
        for one in self._list("Secret", "tokens"):
            if token_id in {t.id for t in self._parse(one, objects.tokens_of)}:
                endpoint = one["metadata"]["labels"][ENDPOINT]
                self._change_tokens(endpoint, lambda before: [t for t in before if t["id"] != token_id])

    # ---- operations ------------------------------------------------------------------------------------------------

    def operations(self) -> list[Operation]:
        return [self._parse(one, objects.operation_of) for one in self._list("ConfigMap", "operation")]

    def save_operation(self, operation: Operation) -> None:
        self._check()
        self._cluster.apply(objects.operation_manifest(operation))

    def remove_operation(self, endpoint_id: str) -> None:
        self._check()
        self._cluster.delete("ConfigMap", f"operation-{endpoint_id}")

    # ---- secrets and locks -----------------------------------------------------------------------------------------

    def secrets(self, of: Endpoint | Version) -> Secrets:
        found = self._cluster.get("Secret", objects.secrets_name(of))
        return self._parse(found, objects.secrets_of) if found else Secrets()

    def save_secrets(self, of: Endpoint | Version, secrets: Secrets) -> None:
        self._check()
        if secrets == Secrets():
            self._cluster.delete("Secret", objects.secrets_name(of))
        else:
            self._cluster.apply(objects.secrets_manifest(of, secrets))

    @contextlib.contextmanager
    def lock(self, name: str, *, wait: bool = True, conflict: str = "") -> Iterator[Lease]:
        endpoint = re.search(r"(?:^|-)([0-9a-f]{24})$", name)
        own = labels("lock", endpoint=endpoint[1] if endpoint else "")
        with held(self._cluster, objects.lock_name(name), own, wait=wait, conflict=conflict) as lease:
            self._leases.append(lease)
            try:
                yield lease
            finally:
                self._leases.remove(lease)

    def forget_lock(self, name: str) -> None:
        found = self._cluster.get("Lease", objects.lock_name(name))
        if found is not None:
            self._remove_lease(found)

    def tidy(self) -> None:
        for one in self._list("Lease", "lock"):
            self._remove_lease(one)
        found = self._list("ConfigMap", "endpoint", "name")
        there = {name_of(one) for one in found}
        for one in found:
            if kind_of_record(one) == "name" and f"endpoint-{data_of(one).get('endpoint')}" not in there:
                created = datetime.datetime.fromisoformat(one["metadata"]["creationTimestamp"].replace("Z", "+00:00"))
                if created.timestamp() + _RESERVED_S < self._cluster.clock():
                    self._remove_unchanged(one)

    # ---- for GitOps ------------------------------------------------------------------------------------------------

    def manifests(self, endpoint: Endpoint, version: Version, secrets: Secrets | None = None) -> tuple[Manifest, ...]:
        """Return the objects that saving both makes, for who applies them by hand; tokens are not among them.

        Parameters
        ----------
        secrets : Secrets or None
            Of the version, as they may be shown.
        """
        made = (
            objects.name_manifest(endpoint, taken=True),
            objects.version_manifest(version),
            *([objects.secrets_manifest(version, secrets, plain=True)] if secrets and secrets != Secrets() else []),
            objects.endpoint_manifest(endpoint),  # last: it routes to the version
        )
        return tuple({**m, "metadata": {**m["metadata"], "namespace": self._cluster.namespace}} for m in made)

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        """Refuse to write when a lock that the caller holds is lost."""
        for lease in self._leases:
            lease.check()

    def _list(self, kind: str, *ours: str, endpoint: str = "") -> Sequence[Manifest]:
        belongs = f",{ENDPOINT}={endpoint}" if endpoint else ""
        return self._cluster.list(kind, f"{MANAGED},{KIND} in ({','.join(sorted(ours))}){belongs}")

    def _endpoint(self, one: Manifest) -> Endpoint:
        read = self._record(one, "endpoint.json", endpoint_of)
        return dataclasses.replace(read, data_plane=self._plane)

    def _version(self, one: Manifest) -> Version:
        return self._record(one, "version.json", version_of)

    def _record(self, one: Manifest, key: str, read: Callable[[str, int], R]) -> R:
        schema = data_of(one).get("schema", "1")
        if schema.isdecimal() and int(schema) > SCHEMA_VERSION:
            raise Unsupported(
                f"ConfigMap {name_of(one)!r} in {self._cluster} was written by a newer release of mlflow-domino (records "
                f"{schema}, this release knows {SCHEMA_VERSION}); its endpoints go on serving. Upgrade mlflow-domino."
            )

        def checked(one: Manifest) -> R:
            text = data_of(one)[key]
            record = read(text, revision_of(text))
            if not name_of(one).endswith(f"-{record.id}"):
                raise ValueError("it holds another one's record")
            return record

        return self._parse(one, checked)

    def _parse(self, one: Manifest, read: Callable[[Manifest], T]) -> T:
        try:
            return read(one)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            why = type(error).__name__ if one["kind"] == "Secret" else f"{type(error).__name__}: {error}"
            raise DominoError(
                f"{one['kind']} {name_of(one)!r} in namespace {self._cluster.namespace!r} of {self._cluster} cannot be used: "
                f"a record in it is damaged ({why}). What runs goes on running. Restore it from a copy, or delete it."
            ) from None

    def _create(self, manifest: Manifest, taken: str) -> None:
        self._check()
        try:
            self._cluster.create(manifest)
        except AlreadyExists:
            raise AlreadyExists(taken) from None

    def _rewrite(self, manifest: Manifest, key: str, revision: int, thing: str) -> None:
        """Write a record over the one of a revision."""
        conflict = Conflict(f"Somebody else changed {thing} meanwhile; look at it and try again.")
        for _ in range(_TRIES):
            self._check()
            found = self._cluster.get("ConfigMap", name_of(manifest))
            if found is None or revision_of(data_of(found).get(key, "")) != revision:
                raise conflict
            with contextlib.suppress(Conflict, NotFound):  # again: it may only wear a new label
                self._cluster.replace(replacement(found, manifest))
                return
        raise conflict

    def _insert_endpoint(self, endpoint: Endpoint, manifest: Manifest) -> None:
        taken = f"Endpoint {endpoint.name!r} exists already; `update` publishes a new version of it."
        if endpoint.name in {e.name for e in self.endpoints()}:
            raise AlreadyExists(taken)
        name = self._reserve(endpoint, taken)
        try:
            self._create(manifest, taken)
        except Refused:
            with contextlib.suppress(DominoError):
                self._remove_unchanged(name)
            raise
        try:
            self._cluster.replace({**name, "data": objects.name_manifest(endpoint, taken=True)["data"]})
        except (Conflict, NotFound):  # somebody took the name over, who saw no endpoint of ours: theirs counts
            self._cluster.delete("ConfigMap", name_of(manifest))
            raise AlreadyExists(taken) from None

    def _reserve(self, endpoint: Endpoint, taken: str) -> Manifest:
        """Have a name for an endpoint that is to be made; one whose endpoint is not there is free."""
        wanted = objects.name_manifest(endpoint, taken=False)
        for _ in range(_TRIES):
            self._check()
            with contextlib.suppress(AlreadyExists):
                return self._cluster.create(wanted)
            found = self._cluster.get("ConfigMap", name_of(wanted))
            if found is None:
                continue
            owner = data_of(found).get("endpoint", "")
            if owner != endpoint.id and self._cluster.get("ConfigMap", f"endpoint-{owner}") is not None:
                raise AlreadyExists(taken)
            with contextlib.suppress(Conflict, NotFound):
                return self._cluster.replace(replacement(found, wanted))
        raise AlreadyExists(taken)

    def _change_tokens(self, endpoint_id: str, change: Callable[[Tokens], Tokens]) -> None:
        for _ in range(_TRIES):
            self._check()
            found = self._cluster.get("Secret", tokens_name(endpoint_id))
            before = self._parse(found, objects.token_documents) if found else []
            made = objects.tokens_manifest(endpoint_id, change(before))
            with contextlib.suppress(AlreadyExists, Conflict):
                if found is None:
                    self._cluster.create(made)
                else:
                    self._cluster.replace({**found, "data": {**data_of(found), **made["data"]}})
                return
        raise Conflict("Somebody else changes these tokens all the time; try again.")

    def _remove_lease(self, found: Manifest) -> None:
        """Remove a lock that nobody holds; one that we hold goes when it is released."""
        if is_free(found, self._cluster.clock()):
            self._remove_unchanged(found)

    def _remove_unchanged(self, found: Manifest) -> None:
        meta = found["metadata"]
        with contextlib.suppress(Conflict):
            self._cluster.delete(found["kind"], meta["name"], uid=meta["uid"], resource_version=meta["resourceVersion"])
