"""What the pods of a version are, from what the API server says of them; pure functions of its documents."""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mlflow_domino.data_planes.replica import ReplicaState
from mlflow_domino.models import Status, Version
from mlflow_domino.refusal import LESS, QUOTA

__all__ = ["alive", "blamed", "ready", "serving", "states"]

Document = Mapping[str, Any]

_CONTAINER = "model"
#: By how much times in documents of one cluster differ: they have whole seconds, and nodes have clocks of their own.
_SLACK_S = 5
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


def serving(pods: Iterable[Document]) -> list[Document]:
    """Return the pods that are meant to serve, in the order of the replicas' numbers.

    While one pod is replaced there may be more of them than replicas: those that answer come first.
    """
    return sorted(alive(pods), key=lambda p: not _ready(p))


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
    chosen = serving(pods)[: version.replicas]
    found = [_state(version, number, pod, events) for number, pod in enumerate(chosen)]
    evicted = _evicted(pods)
    if evicted:
        found = [replace(s, reason=evicted) if s.state == "loading" and not s.reason else s for s in found]
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
    container = _container(pod)
    return pod, "terminated" in (container.get("lastState") or {}) and "terminated" not in (
        container.get("state") or {}
    )


def _state(version: Version, number: int, pod: Document, events: Sequence[Document]) -> ReplicaState:
    since_ms = _since_ms(pod)
    if _ready(pod):
        return ReplicaState(number, "ready", since_ms=since_ms)
    container = _container(pod)
    now: Document = container.get("state") or {}
    waiting = now.get("waiting") or {}
    if waiting.get("reason") in _HOPELESS:
        why = _said(events, pod, "Failed") or waiting.get("message") or waiting["reason"]
        return ReplicaState(number, "failed", f"{_HOPELESS[waiting['reason']]}: {why}", since_ms=since_ms)
    ended = now.get("terminated") or (container.get("lastState") or {}).get("terminated")
    if not ended:
        return ReplicaState(number, "loading", _why_unready(version, pod, events, waiting), since_ms=since_ms)
    why = _why_ended(ended, pod, events)
    # One that never served is given up at once; of one that did, Kubernetes makes another attempt, later and later.
    if version.status is Status.STARTING or waiting or ("terminated" in now and _last_words(ended)):
        return ReplicaState(number, "failed", why, since_ms=since_ms)
    return ReplicaState(number, "lost", f"it is being started again: {why}", since_ms=since_ms)


def _why_unready(version: Version, pod: Document, events: Sequence[Document], waiting: Document) -> str:
    scheduled = _condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        return f"no node has a place for it: {scheduled.get('message') or scheduled.get('reason')}"
    if waiting.get("reason") == "ErrImagePull":
        return f"its image cannot be pulled yet: {waiting.get('message')}"
    mount = _said(events, pod, "FailedMount") or _said(events, pod, "FailedCreatePodSandBox")
    if mount and "running" not in (_container(pod).get("state") or {}):
        return mount
    if waiting and _newest(events, pod, "Pulling") and not _newest(events, pod, "Pulled"):
        return "its image is being pulled"
    containers = pod.get("status", {}).get("containerStatuses") or ()
    if containers and all(c.get("ready") for c in containers):  # nobody there says that they are not
        return f"its node {pod['spec'].get('nodeName', '')} does not answer"
    if version.status is not Status.STARTING and (probe := _said(events, pod, "Unhealthy")):
        return probe
    return ""


def _missing(version: Version, pods: Sequence[Document], deployment: Document | None) -> tuple[str, str]:
    """Say why there are fewer pods than replicas."""
    if deployment is None:
        return "lost", "its Deployment is gone; `mlflow-domino endpoint start` makes another"
    failure = _condition(deployment, "ReplicaFailure")
    if failure.get("status") == "True":
        why = str(failure.get("message"))
        return "failed", f"its pod cannot be made: {why}{f'; {LESS}' if QUOTA in why else ''}"
    evicted = _evicted(pods)
    if evicted:
        return "lost", evicted
    if int(deployment["spec"].get("replicas", 0)) < version.replicas:
        return "lost", "somebody scaled its Deployment down; `mlflow-domino endpoint start` puts that right"
    return "absent", "it has no pod yet"


def _evicted(pods: Sequence[Document]) -> str:
    """Say what the cluster ended last of its own accord; empty where it did not."""
    gone = [p for p in pods if _phase(p) == "Failed" and p["status"].get("reason")]
    if not gone:
        return ""
    last = max(gone, key=lambda p: str(p["metadata"]["creationTimestamp"]))["status"]
    return f"its pod was ended ({last['reason']}: {str(last.get('message', '')).strip()})"


def _why_ended(ended: Document, pod: Document, events: Sequence[Document]) -> str:
    if ended.get("reason") == "OOMKilled":
        own = next(c for c in pod["spec"]["containers"] if c["name"] == _CONTAINER)
        limit = (own.get("resources") or {}).get("limits", {}).get("memory")
        return f"it was killed for want of memory (limit {_amount(limit) if limit else 'of the node'})"
    killed = _killed(ended, pod, events)
    return _last_words(ended) or killed or f"its container ended with code {ended.get('exitCode')}"


def _last_words(ended: Document) -> str:
    """Return why a start failed in the harness's own words, empty where it left none."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        reason: str = json.loads(ended.get("message") or "")["reason"]
        return reason
    return ""


def _killed(ended: Document, pod: Document, events: Sequence[Document]) -> str:
    """Say which probe failed, where the container was ended for that."""
    killing = _newest(events, pod, "Killing")
    if "probe" not in str(killing.get("message")):
        return ""
    patience_ms = (int(pod["spec"].get("terminationGracePeriodSeconds", 30)) + _SLACK_S) * 1000
    if _milliseconds(str(ended.get("finishedAt") or "")) - _milliseconds(_time_of(killing)) > patience_ms:
        return ""  # an earlier run of it
    return f"{str(killing['message']).strip()} ({_said(events, pod, 'Unhealthy') or 'it does not say why'})"


def _amount(quantity: object) -> str:
    """Return an amount of memory as people write it, where it is a plain number."""
    text = str(quantity)
    if text.isdecimal():
        for unit, size in (("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)):
            if int(text) % size == 0:
                return f"{int(text) // size}{unit}"
    return text


def _said(events: Sequence[Document], pod: Document, reason: str) -> str:
    """Return the newest message of an event of a pod, empty where there is none."""
    return str(_newest(events, pod, reason).get("message", "")).strip()


def _newest(events: Sequence[Document], pod: Document, reason: str) -> Document:
    name = pod["metadata"]["name"]
    told = [e for e in events if e.get("reason") == reason and e.get("involvedObject", {}).get("name") == name]
    return max(told, key=_time_of, default={})


def _time_of(event: Document) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or "")


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


def _since_ms(pod: Document) -> int:
    """Return since when it is what it is: made, ready or unready, or started again."""
    running = (_container(pod).get("state") or {}).get("running") or {}
    moments = (
        pod["metadata"]["creationTimestamp"],
        running.get("startedAt"),
        _condition(pod, "Ready").get("lastTransitionTime"),
    )
    return max(_milliseconds(str(moment or "")) for moment in moments)


def _milliseconds(moment: str) -> int:
    """Return a time of the server's in milliseconds since the epoch, 0 of none; fractions of seconds do not count."""
    with contextlib.suppress(ValueError):
        when = datetime.datetime.strptime(moment[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=datetime.timezone.utc)
        return int(when.timestamp() * 1000)
    return 0
