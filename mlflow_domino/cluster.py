"""One Kubernetes API server and one namespace: what we ask of it, in our own words and errors."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Generator, Mapping
from typing import Any
from urllib.parse import parse_qsl

from mlflow_domino.dialect import Kind, Manifest, fitted, kind_of, replacement, stable
from mlflow_domino.errors import AlreadyExists, Conflict, Expired, InvalidInput, NotFound, Unavailable, Unsupported
from mlflow_domino.refusal import Call, refusal
from mlflow_domino.transport import READ_S, Query, Transport, own

__all__ = ["Cluster", "Listing", "Manifest"]

_PAGE = 500
_APPLY_S = 10.0
_OWNER = "mlflow-domino"
_MERGE, _STRATEGIC, _JSON = (
    f"application/{kind}+json" for kind in ("merge-patch", "strategic-merge-patch", "json-patch")
)

Labels = Mapping[str, str] | str
Operations = list[Mapping[str, Any]]


class Listing(list[Manifest]):
    """Objects of one kind at one moment.

    Attributes
    ----------
    resource_version : str
        The moment, from which a watch goes on.
    """

    resource_version: str = ""


class Cluster:
    """Talks to the API server that a context of the kubeconfig names; connects when first needed.

    Objects are plain dicts, in the stable API version whatever the server serves. An object that the caller asks for by
    name may be absent: `get` gives None, `delete` does nothing. All other refusals are errors:

    - `Unreachable`: no answer within some seconds; `Unavailable`: too busy; `Expired`: of `watch`, list again.
    - `Forbidden`: a right, a quota or an admission rule; the message names which.
    - `AlreadyExists`, `Conflict` (another one wrote it since it was read), `NotFound`, `InvalidInput` (with the fields).

    Parameters
    ----------
    context : str
        Empty for the current context, or else the cluster that this process runs in.
    namespace : str
        Empty for the context's.
    kubeconfig : str or None
        One file or several, as in the variable KUBECONFIG, which is the default.
    """

    def __init__(self, context: str = "", namespace: str = "", *, kubeconfig: str | None = None) -> None:
        self._transport = Transport(context, namespace, kubeconfig)
        self._served: dict[str, frozenset[str]] = {}

    @property
    def context(self) -> str:
        return self._transport.connection.context

    @property
    def namespace(self) -> str:
        return self._transport.connection.namespace

    @property
    def server(self) -> str:
        """URL of the API server."""
        return self._transport.connection.server

    def __str__(self) -> str:
        return f"the cluster {self.context!r} ({self.server})"

    def close(self) -> None:
        """End all connections; the next call opens new ones."""
        self._transport.close()

    # ---- objects -------------------------------------------------------------------------------------------------

    def get(self, kind: str, name: str) -> Manifest | None:
        """Return an object, None where there is none of that name."""
        try:
            return stable(self._object("get", "GET", kind, name))
        except NotFound:
            return None

    def list(self, kind: str, labels: Labels = "", *, fields: str = "") -> Listing:
        """Return the objects with some labels, in the order of their names.

        Parameters
        ----------
        labels : mapping of str to str, or str
            Names and values, or a selector.
        fields : str
            A field selector, such as ``status.phase=Running``.
        """
        try:
            return self._list(kind, labels, fields)
        except (Expired, NotFound):  # the pages took too long; or the server was upgraded, and serves other versions
            self._served.clear()
            return self._list(kind, labels, fields)

    def create(self, manifest: Mapping[str, Any], *, dry_run: bool = False) -> Manifest:
        """Make an object; with `dry_run` only have the server check it.

        Raises
        ------
        AlreadyExists
            There is one of that name.
        """
        kind = str(manifest["kind"])
        query = [("fieldManager", _OWNER), *([("dryRun", "All")] if dry_run else [])]
        return stable(self._object("create", "POST", kind, _name(manifest), body=manifest, query=query))

    def replace(self, manifest: Mapping[str, Any], *, dry_run: bool = False) -> Manifest:
        """Write an object over the one that it was made from; ``metadata.resourceVersion`` is the precondition.

        Raises
        ------
        Conflict
            Somebody else wrote it since.
        """
        if not manifest["metadata"].get("resourceVersion"):
            raise ValueError("without metadata.resourceVersion another one's change would be lost")
        kind = str(manifest["kind"])
        query = [("fieldManager", _OWNER), *([("dryRun", "All")] if dry_run else [])]
        return stable(self._object("update", "PUT", kind, _name(manifest), body=manifest, query=query))

    def apply(self, manifest: Mapping[str, Any]) -> Manifest:
        """Have an object be as the manifest says: make it, or change the one that is there; unchanged, nothing is written.

        Kept of the one that is there: what the server allocated, status, foreign labels and annotations, and
        ``spec.replicas`` where the manifest does not say it.

        Raises
        ------
        InvalidInput
            A field cannot be changed; the message names it.
        """
        kind, name = str(manifest["kind"]), _name(manifest)
        deadline = time.monotonic() + _APPLY_S
        while True:
            try:
                found = self.get(kind, name)
                if found is None:
                    return self.create(manifest)
                if "deletionTimestamp" not in found["metadata"]:
                    return self.replace(replacement(found, manifest))
            except (AlreadyExists, Conflict):
                pass
            except NotFound:
                if found is None:
                    raise
            if time.monotonic() > deadline:
                raise Conflict(f"{kind} {name!r} is being deleted or changed all the time; look at it and try again.")
            time.sleep(0.05)

    def patch(self, kind: str, name: str, body: Mapping[str, Any] | Operations, *, strategic: bool = False) -> Manifest:
        """Change some fields: a JSON merge patch (lists are replaced), a strategic one, or a list of JSON patch operations."""
        content = _JSON if isinstance(body, list) else _STRATEGIC if strategic else _MERGE
        query = [("fieldManager", _OWNER)]
        return stable(self._object("patch", "PATCH", kind, name, body=body, query=query, content_type=content))

    def delete(
        self, kind: str, name: str, *, grace_s: int | None = None, propagation: str = "Background", uid: str = "",
        resource_version: str = "",
    ) -> None:  # fmt: skip
        """Remove an object; one that is not there is no error.

        Parameters
        ----------
        grace_s : int or None
            Of pods, instead of their own.
        propagation : str
            ``Background``, or ``Foreground``: the object stays until what depends on it is gone.
        uid, resource_version : str
            Only if it is still this one; else `Conflict`.
        """
        options: Manifest = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": propagation}
        if grace_s is not None:
            options["gracePeriodSeconds"] = grace_s
        only = {k: v for k, v in (("uid", uid), ("resourceVersion", resource_version)) if v}
        if only:
            options["preconditions"] = only
        with contextlib.suppress(NotFound):
            self._object("delete", "DELETE", kind, name, body=options)

    def watch(
        self, kind: str, labels: Labels = "", *, resource_version: str = "", timeout_s: float = 30.0, fields: str = ""
    ) -> Generator[tuple[str, Manifest], None, None]:
        """Yield changes as they happen: ``ADDED``, ``MODIFIED``, ``DELETED``, and ``BOOKMARK`` with a newer moment.

        It ends when the time is over; go on from the last ``metadata.resourceVersion``.

        Parameters
        ----------
        resource_version : str
            Where to begin, as `list` gave it; empty: everything that there is, as ``ADDED``.

        Raises
        ------
        Expired
            It is too long ago: list, and begin anew.
        """
        query = _selection(labels, fields)
        query += [("watch", "true"), ("allowWatchBookmarks", "true"), ("timeoutSeconds", str(max(1, int(timeout_s))))]
        if resource_version:
            query.append(("resourceVersion", resource_version))
        call = self._call("watch", kind_of(kind))
        path = self._path(kind_of(kind))
        answer = self._transport.send(call, "GET", path, query=query, read_s=timeout_s + READ_S)
        with contextlib.closing(self._transport.lines(call, answer)) as lines:
            for line in lines:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise refusal(call, int(event["object"].get("code", 500)), json.dumps(event["object"]))
                yield event["type"], stable(event["object"])

    # ---- pods ----------------------------------------------------------------------------------------------------

    def proxy(
        self, pod: str, port: int, path: str, *, timeout_s: float = READ_S, method: str = "GET"
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Ask a pod over HTTP, through the API server; return status, headers and body of its answer.

        Raises
        ------
        NotFound
            No such pod.
        Unavailable
            The pod does not answer.
        """
        verb = {"GET": "get", "POST": "create", "PUT": "update", "DELETE": "delete"}[method]
        call = self._call(verb, kind_of("Pod"), pod, "proxy")
        path, _, query = path.partition("?")
        pairs = parse_qsl(query, keep_blank_values=True)
        url = f"{self._path(kind_of('Pod'), f'{pod}:{port}', 'proxy')}/{path.lstrip('/')}"
        answer = self._transport.attempt(call, method, url, query=pairs, read_s=timeout_s)
        if answer.response is not None:
            return answer.code, answer.headers, self._transport.read(call, answer)
        if not own(answer):
            return answer.code, answer.headers, answer.body
        if answer.code in (500, 502, 503, 504):
            raise Unavailable(f"The pod {pod!r} in {self} does not answer on port {port}.")
        raise refusal(call, answer.code, answer.body)

    def pod_log(
        self, pod: str, container: str = "", *, tail: int | None = None, previous: bool = False, limit: int = 1 << 20,
        since: str = "", stamps: bool = False,
    ) -> str:  # fmt: skip
        """Return the log of a container, at most its last `tail` lines and `limit` bytes; empty where there is none yet.

        Parameters
        ----------
        previous : bool
            Of the container's run before this one.
        since : str
            Nothing older than this time's second.
        stamps : bool
            Each line with its time in front, to the nanosecond.
        """
        query = [("limitBytes", str(limit)), *([("container", container)] if container else [])]
        query += [
            *([("tailLines", str(tail))] if tail is not None else []),
            *([("previous", "true")] if previous else []),
            *([("sinceTime", since)] if since else []),
            *([("timestamps", "true")] if stamps else []),
        ]
        call = self._call("get", kind_of("Pod"), pod, "log")
        try:
            answer = self._transport.send(call, "GET", self._path(kind_of("Pod"), pod, "log"), query=query)
        except (NotFound, InvalidInput):  # no pod; or its container has not started, or never ran before
            return ""
        return self._transport.read(call, answer).decode("utf-8", "replace")

    def events(self, of: Mapping[str, Any]) -> Listing:
        """Return what happened to an object, as the cluster tells it, oldest first."""
        fields = f"involvedObject.kind={of['kind']},involvedObject.name={_name(of)}"
        if of["metadata"].get("uid"):
            fields += f",involvedObject.uid={of['metadata']['uid']}"
        found = self.list("Event", fields=fields)
        found.sort(key=_moment)
        return found

    # ---- the server ----------------------------------------------------------------------------------------------

    def may(self, verb: str, kind: str, subresource: str = "") -> bool:
        """Whether we have a right in the namespace, as the server knows it."""
        asked = kind_of(kind)
        attributes = {"verb": verb, "group": asked.group, "resource": asked.plural, "subresource": subresource}
        if asked.namespaced:
            attributes["namespace"] = self.namespace
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
                  "spec": {"resourceAttributes": attributes}}  # fmt: skip
        answer = self._transport.json(self._call("create"), "POST", path, body=review)
        return bool(answer["status"].get("allowed"))

    def version(self, *, timeout_s: float = READ_S) -> tuple[int, int]:
        """Return the server's version, such as (1, 29)."""
        answer = self._transport.json(self._call("get"), "GET", "/version", read_s=timeout_s)
        return int(answer["major"]), int("".join(c for c in answer["minor"] if c.isdigit()))

    def clock(self) -> float:
        """Return the server's time, to a second or so: clocks of machines differ, and leases are compared by it."""
        if self._transport.skew is None:
            self.version()
        return time.time() + (self._transport.skew or 0.0)

    def served(self, kind: str) -> str:
        """Return the API version in which the server serves a kind, the stable one if it can.

        Raises
        ------
        Unsupported
            It serves none that we know.
        """
        wanted = kind_of(kind)
        if len(wanted.versions) == 1:
            return wanted.versions[0]
        for version in wanted.versions:
            if version not in self._served:
                self._served[version] = self._kinds(version)
            if kind in self._served[version]:
                return version
        raise Unsupported(f"This server serves no {kind} of {' or '.join(wanted.versions)} ({self}).")

    def fitted(self, manifest: Mapping[str, Any]) -> Manifest:
        """Return a manifest in the API version that this server serves."""
        return fitted(manifest, self.served(str(manifest["kind"])))

    # ---- requests ------------------------------------------------------------------------------------------------

    def _kinds(self, version: str) -> frozenset[str]:
        try:
            answer = self._transport.json(self._call("get"), "GET", f"/apis/{version}")
        except NotFound:
            return frozenset()
        return frozenset(resource["kind"] for resource in answer.get("resources", ()))

    def _list(self, kind: str, labels: Labels, fields: str) -> Listing:
        found, more = Listing(), ""
        call = self._call("list", kind_of(kind))
        version = self.served(kind)
        while True:
            query = [*_selection(labels, fields), ("limit", str(_PAGE)), *([("continue", more)] if more else [])]
            page = self._transport.json(call, "GET", self._path(kind_of(kind)), query=query)
            # Items of a list say neither kind nor version.
            found += [stable({**item, "kind": kind, "apiVersion": version}) for item in page.get("items") or ()]
            found.resource_version = page["metadata"].get("resourceVersion", "")
            more = page["metadata"].get("continue") or ""
            if not more:
                return found

    def _object(
        self, verb: str, method: str, kind: str, name: str, *, body: Any = None, query: Query | None = None,
        content_type: str = "application/json",
    ) -> Manifest:  # fmt: skip
        what = kind_of(kind)
        if verb in ("create", "update"):
            body = self.fitted(body)
            if what.namespaced:
                body["metadata"] = {**body["metadata"], "namespace": self.namespace}
        path = self._path(what, "" if method == "POST" else name)
        call = self._call(verb, what, name)
        return self._transport.json(call, method, path, body=body, query=query, content_type=content_type)

    def _path(self, kind: Kind, name: str = "", subresource: str = "") -> str:
        version = self.served(kind.name)
        parts = ["apis" if "/" in version else "api", version]
        parts += ["namespaces", self.namespace] if kind.namespaced else []
        return "/" + "/".join([*parts, kind.plural, *([name] if name else []), *([subresource] if subresource else [])])

    def _call(self, verb: str, kind: Kind | None = None, name: str = "", subresource: str = "") -> Call:
        return Call(str(self), self.namespace, verb, kind, name, subresource)


def _name(manifest: Mapping[str, Any]) -> str:
    return str(manifest["metadata"]["name"])


def _selection(labels: Labels, fields: str) -> Query:
    selector = labels if isinstance(labels, str) else ",".join(f"{k}={v}" for k, v in labels.items())
    return [*([("labelSelector", selector)] if selector else []), *([("fieldSelector", fields)] if fields else [])]


def _moment(event: Manifest) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp") or "")
