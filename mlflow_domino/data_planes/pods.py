"""What the pods of a version are, from what the API server says of them; pure functions of its documents."""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mlflow_domino.data_planes.replica import ReplicaState
from mlflow_domino.models import Status, Version

__all__ = ["alive", "blamed", "ready", "states"]

Document = Mapping[str, Any]

_CONTAINER = "model"
#: Why a container cannot run, however long one waits; what Kubernetes calls it, and what we say.
_HOPELESS = {
    "ImagePullBackOff": "its image cannot be pulled",
    "InvalidImageName": "its image's name is wrong",
    "ErrImageNeverPull": "its image is not on the node",
    "CreateContainerConfigError": "its container cannot be made",
    "CreateContainerError": "its container cannot be made",
    "RunContainerError": "its container cannot be started",
}


def alive(pods: Iterable[Document]) -> list[Document]:
    """Return the pods that are meant to serve, oldest first: neither ending nor ended."""
    found = [p for p in pods if not p["metadata"].get("deletionTimestamp") and _phase(p) not in ("Failed", "Succeeded")]
    return sorted(found, key=lambda p: (p["metadata"]["creationTimestamp"], p["metadata"]["name"]))


def ready(pods: Iterable[Document]) -> list[Document]:
    """Return the pods that answer."""
    return [p for p in alive(pods) if _ready(p)]


def states(
    version: Version, pods: Sequence[Document], *, events: Sequence[Document] = (), deployment: Document | None = None
) -> list[ReplicaState]:
    """Say what each of a version's replicas is.

    Parameters
    ----------
    pods : sequence of mapping
        Of the version, ended ones too.
    events : sequence of mapping
        Of its pods and of what makes them; they say why.
    deployment : mapping or None
        None where there is none.
    """
    serving = alive(pods)
    # While one pod is replaced there may be more of them than replicas: those that are ready count.
    chosen = sorted(serving, key=lambda p: not _ready(p))[: version.replicas]
    found = [_state(version, number, pod, events) for number, pod in enumerate(chosen)]
    if len(found) < version.replicas:
        state, reason = _missing(version, pods, deployment)
        found += [ReplicaState(n, state, reason) for n in range(len(found), version.replicas)]
    return found


def blamed(pods: Sequence[Document]) -> tuple[Document, bool] | None:
    """Return the pod whose log explains most, and whether that is the log of its container's run before this one."""
    unready = [p for p in alive(pods) if not _ready(p)]
    if not unready:
        return None
    pod = max(unready, key=lambda p: int(_container(p).get("restartCount", 0)))
    running = "running" in (_container(pod).get("state") or {})
    return pod, not running and int(_container(pod).get("restartCount", 0)) > 0


def _state(version: Version, number: int, pod: Document, events: Sequence[Document]) -> ReplicaState:
    since_ms = _milliseconds(pod["metadata"]["creationTimestamp"])
    if _ready(pod):
        return ReplicaState(number, "ready", since_ms=since_ms)
    container = _container(pod)
    waiting = (container.get("state") or {}).get("waiting") or {}
    if waiting.get("reason") in _HOPELESS:
        why = _said(events, pod, "Failed") or waiting.get("message") or waiting["reason"]
        return ReplicaState(number, "failed", f"{_HOPELESS[waiting['reason']]}: {why}", since_ms=since_ms)
    ended = _ended(container)
    if ended is not None:
        # A version that served is started again by Kubernetes; one that never did is given up.
        state = "failed" if version.status is Status.STARTING or waiting else "lost"
        return ReplicaState(number, state, _why_ended(ended, pod), since_ms=since_ms)
    return ReplicaState(number, "loading", _why_unready(version, pod, events, waiting), since_ms=since_ms)


def _why_unready(version: Version, pod: Document, events: Sequence[Document], waiting: Document) -> str:
    scheduled = _condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        return f"no node has a place for it: {scheduled.get('message') or scheduled.get('reason')}"
    if waiting.get("reason") == "ErrImagePull":
        return f"its image cannot be pulled yet: {waiting.get('message')}"
    mount = _said(events, pod, "FailedMount") or _said(events, pod, "FailedCreatePodSandBox")
    if mount and "running" not in (_container(pod).get("state") or {}):
        return mount
    if version.status is not Status.STARTING and (probe := _said(events, pod, "Unhealthy")):
        return probe
    return ""


def _missing(version: Version, pods: Sequence[Document], deployment: Document | None) -> tuple[str, str]:
    """Say why there are fewer pods than replicas."""
    if deployment is None:
        return "lost", "its Deployment is gone; `mlflow-domino endpoint start` makes another"
    failure = _condition(deployment, "ReplicaFailure")
    if failure.get("status") == "True":
        return "failed", f"its pod cannot be made: {failure.get('message')}"
    evicted = [p for p in pods if _phase(p) == "Failed" and p["status"].get("reason")]
    if evicted:
        last = max(evicted, key=lambda p: str(p["metadata"]["creationTimestamp"]))["status"]
        return "lost", f"its pod was ended ({last['reason']}: {last.get('message', '')})"
    if int(deployment["spec"].get("replicas", 0)) < version.replicas:
        return "lost", "somebody scaled its Deployment down; `mlflow-domino endpoint start` puts that right"
    return "absent", ""


def _ended(container: Document) -> Document | None:
    """Return how the container ended last, where it has not been ready since."""
    for key in ("state", "lastState"):
        ended: Document | None = (container.get(key) or {}).get("terminated")
        if ended:
            return ended
    return None


def _why_ended(ended: Document, pod: Document) -> str:
    if ended.get("reason") == "OOMKilled":
        limits = (
            next(c for c in pod["spec"]["containers"] if c["name"] == _CONTAINER).get("resources", {}).get("limits", {})
        )
        return f"it was killed for want of memory (limit {limits.get('memory', 'of the node')})"
    with contextlib.suppress(ValueError, TypeError, KeyError):
        reason: str = json.loads(ended.get("message") or "")["reason"]
        return reason
    return f"its container ended with code {ended.get('exitCode')}"


def _said(events: Sequence[Document], pod: Document, reason: str) -> str:
    """Return the newest message of an event of a pod, empty where there is none."""
    name = pod["metadata"]["name"]
    told = [e for e in events if e.get("reason") == reason and e.get("involvedObject", {}).get("name") == name]
    newest = max(told, key=lambda e: str(e.get("lastTimestamp") or e.get("eventTime") or ""), default={})
    return str(newest.get("message", "")).strip()


def _container(pod: Document) -> Document:
    found: Sequence[Document] = pod.get("status", {}).get("containerStatuses") or ()
    return next((c for c in found if c["name"] == _CONTAINER), {})


def _condition(document: Document, kind: str) -> Document:
    found: Sequence[Document] = document.get("status", {}).get("conditions") or ()
    return next((c for c in found if c["type"] == kind), {})


def _ready(pod: Document) -> bool:
    return _condition(pod, "Ready").get("status") == "True"


def _phase(pod: Document) -> str:
    return str(pod.get("status", {}).get("phase", ""))


def _milliseconds(moment: str) -> int:
    when = datetime.datetime.strptime(moment, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=datetime.timezone.utc)
    return int(when.timestamp() * 1000)
