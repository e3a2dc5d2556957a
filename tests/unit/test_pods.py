"""What is made of the API server's documents about pods; the documents' shapes were seen on Kubernetes 1.20."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from mlflow_domino.config import Settings
from mlflow_domino.data_planes import pods
from mlflow_domino.data_planes.replica import ReplicaState, summary
from mlflow_domino.models import FileSource, Status, Target, Version

SOURCE = FileSource("/p", "model.py", "predict", "0" * 64)
STARTING = Version(
    "a" * 24, "b" * 24, 1, 0, SOURCE, Settings(start_timeout_s=86400), status=Status.STARTING, target=Target.RUNNING
)
RUNNING = dataclasses.replace(STARTING, status=Status.RUNNING)
DEPLOYMENT = {"spec": {"replicas": 1}, "status": {}}


def a_pod(name: str = "model-1", *, ready: bool = False, phase: str = "Running", **container: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "creationTimestamp": "2026-11-23T05:00:00Z"},
        "spec": {"containers": [{"name": "model", "resources": {"limits": {"memory": "64Mi"}}}]},
        "status": {
            "phase": phase,
            "conditions": [{"type": "Ready", "status": str(ready)}, {"type": "PodScheduled", "status": "True"}],
            "containerStatuses": [{"name": "model", "restartCount": 0, "state": {"running": {}}, **container}],
        },
    }


def an_event(reason: str, message: str, pod: str = "model-1") -> dict[str, Any]:
    return {"reason": reason, "message": message, "involvedObject": {"name": pod}, "lastTimestamp": "2026"}


def state(version: Version, *found: dict[str, Any], **more: Any) -> ReplicaState:
    return pods.states(version, found, deployment=DEPLOYMENT, **more)[0]


def test_a_pod_that_is_ready_serves() -> None:
    assert state(STARTING, a_pod(ready=True)).state == "ready"


def test_the_ready_one_of_two_counts_while_a_pod_is_replaced() -> None:
    assert state(RUNNING, a_pod("model-1"), a_pod("model-2", ready=True)).state == "ready"


def test_a_pod_that_is_ending_does_not_count() -> None:
    ending = a_pod(ready=True)
    ending["metadata"]["deletionTimestamp"] = "2026-11-23T05:01:00Z"
    assert state(RUNNING, ending).state == "absent"
    assert pods.ready([ending]) == []


def test_an_image_that_cannot_be_pulled_fails_with_the_nodes_own_words() -> None:
    pod = a_pod(phase="Pending", state={"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}})
    seen = state(STARTING, pod, events=[an_event("Failed", "manifest for x:1 not found")])
    assert seen.state == "failed"
    assert seen.reason == "its image cannot be pulled: manifest for x:1 not found"


def test_a_container_killed_for_want_of_memory_says_its_limit() -> None:
    pod = a_pod(restartCount=1, lastState={"terminated": {"reason": "OOMKilled", "exitCode": 137}})
    assert state(STARTING, pod).state == "failed"
    assert "64Mi" in state(STARTING, pod).reason


def test_a_failed_start_gives_the_harnesss_own_reason() -> None:
    words = json.dumps({"reason": "RuntimeError: no such weights", "detail": ""})
    pod = a_pod(state={"terminated": {"reason": "Error", "exitCode": 1, "message": words}})
    assert state(STARTING, pod).reason == "RuntimeError: no such weights"


def test_a_container_that_says_nothing_gives_its_exit_code() -> None:
    pod = a_pod(state={"terminated": {"reason": "Error", "exitCode": 3, "message": "Segmentation fault"}})
    assert state(STARTING, pod).reason == "its container ended with code 3"


def test_a_version_that_served_is_lost_while_its_container_starts_again_and_failed_in_a_crash_loop() -> None:
    ended = {"terminated": {"reason": "Error", "exitCode": 9}}
    assert state(RUNNING, a_pod(restartCount=1, lastState=ended)).state == "lost"
    looping = a_pod(restartCount=5, lastState=ended, state={"waiting": {"reason": "CrashLoopBackOff"}})
    assert state(RUNNING, looping).state == "failed"


def test_a_pod_that_no_node_takes_says_what_is_missing_and_goes_on_waiting() -> None:
    pod = a_pod(phase="Pending", state={})
    pod["status"]["conditions"][1] = {
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes: Insufficient cpu",
    }  # fmt: skip
    seen = state(STARTING, pod)
    assert seen.state == "loading"
    assert "Insufficient cpu" in seen.reason
    assert summary(STARTING, [seen]).status is Status.STARTING


def test_a_quota_that_is_used_up_fails_with_the_servers_words() -> None:
    condition = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: small"}
    deployment = {"spec": {"replicas": 1}, "status": {"conditions": [condition]}}
    (seen,) = pods.states(STARTING, [], deployment=deployment)
    assert seen.state == "failed"
    assert "exceeded quota: small" in seen.reason


def test_an_evicted_pod_says_why_it_was_ended() -> None:
    evicted = a_pod(phase="Failed")
    evicted["status"] |= {"reason": "Evicted", "message": "The node was low on resource: memory."}
    assert "low on resource" in state(RUNNING, evicted).reason


def test_a_failing_probe_is_said_of_a_version_that_served_only() -> None:
    events = [an_event("Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 503")]
    assert "Readiness probe failed" in state(RUNNING, a_pod(), events=events).reason
    assert not state(STARTING, a_pod(), events=events).reason


@pytest.mark.parametrize(
    ("deployment", "words"), [(None, "gone"), ({"spec": {"replicas": 0}, "status": {}}, "scaled its Deployment down")]
)
def test_pods_that_somebody_took_away_are_lost(deployment: dict[str, Any] | None, words: str) -> None:
    (seen,) = pods.states(RUNNING, [], deployment=deployment)
    assert seen.state == "lost"
    assert words in seen.reason


def test_the_log_that_explains_most_is_the_last_run_of_the_container_that_is_down() -> None:
    down = a_pod("model-2", restartCount=2, state={"waiting": {"reason": "CrashLoopBackOff"}})
    assert pods.blamed([a_pod("model-1", ready=True), down]) == (down, True)
    assert pods.blamed([a_pod(ready=True)]) is None
