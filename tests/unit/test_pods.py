"""What is made of the API server's documents about pods; the documents' shapes were seen on Kubernetes 1.20."""

from __future__ import annotations

import dataclasses
import datetime
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
    ended = {"terminated": {"reason": "Error", "exitCode": 1}}
    down = a_pod("model-2", restartCount=2, state={"waiting": {"reason": "CrashLoopBackOff"}}, lastState=ended)
    assert pods.blamed([a_pod("model-1", ready=True), down]) == (down, True)
    assert pods.blamed([a_pod(ready=True)]) is None


def test_the_log_of_a_container_that_has_just_ended_is_its_own() -> None:
    ended = {"terminated": {"reason": "Error", "exitCode": 1}}
    just_ended = a_pod(restartCount=2, state=ended, lastState=ended)
    assert pods.blamed([just_ended]) == (just_ended, False)


def test_a_start_that_failed_again_is_failed_even_before_kubernetes_waits_for_the_next() -> None:
    words = json.dumps({"reason": "RuntimeError: no such weights", "detail": ""})
    ended = {"terminated": {"reason": "Error", "exitCode": 1, "message": words}}
    assert state(RUNNING, a_pod(restartCount=3, state=ended, lastState=ended)).state == "failed"
    again = state(RUNNING, a_pod(restartCount=3, lastState=ended))
    assert again == ReplicaState(
        0, "lost", "it is being started again: RuntimeError: no such weights", "", again.since_ms
    )


def test_an_old_pod_that_was_started_again_just_now_is_not_overdue() -> None:
    started = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    ended = {"terminated": {"reason": "Error", "exitCode": 9}}
    seen = state(RUNNING, a_pod(restartCount=1, state={"running": {"startedAt": started}}, lastState=ended))
    impatient = dataclasses.replace(RUNNING, settings=Settings(start_timeout_s=60))
    assert summary(impatient, [seen]).status is Status.STARTING


def test_a_limit_in_bytes_is_told_as_people_write_it() -> None:
    pod = a_pod(restartCount=1, lastState={"terminated": {"reason": "OOMKilled", "exitCode": 137}})
    pod["spec"]["containers"][0]["resources"]["limits"]["memory"] = str(192 << 20)
    assert "(limit 192Mi)" in state(STARTING, pod).reason


def test_a_container_that_was_ended_for_a_failing_probe_says_which() -> None:
    ended = {"terminated": {"reason": "Error", "exitCode": 137, "finishedAt": "2026-11-23T06:00:09Z"}}
    killing = {**an_event("Killing", "Container model failed liveness probe, will be restarted"), "lastTimestamp": "2026-11-23T06:00:00Z"}  # fmt: skip
    pod = a_pod(restartCount=1, lastState=ended)
    seen = state(RUNNING, pod, events=[killing, an_event("Unhealthy", "Liveness probe failed: HTTP 503")])
    assert "failed liveness probe" in seen.reason
    assert "HTTP 503" in seen.reason
    older = {**killing, "lastTimestamp": "2026-11-23T05:00:00Z"}
    assert "code 137" in state(RUNNING, pod, events=[older]).reason


def test_a_pod_whose_containers_are_ready_and_which_is_not_is_on_a_node_that_does_not_answer() -> None:
    pod = a_pod(ready=False, state={"running": {}})
    pod["status"]["containerStatuses"][0]["ready"] = True
    pod["spec"]["nodeName"] = "node-7"
    assert state(RUNNING, pod).reason == "its node node-7 does not answer"


def test_the_successor_of_an_evicted_pod_says_why_it_was_ended_while_it_loads() -> None:
    evicted = a_pod("model-1", phase="Failed")
    evicted["status"] |= {"reason": "Evicted", "message": "The node was low on resource: memory."}
    seen = state(RUNNING, evicted, a_pod("model-2", state={"waiting": {"reason": "ContainerCreating"}}))
    assert "low on resource" in seen.reason


def test_a_large_image_on_its_way_is_said() -> None:
    pod = a_pod(phase="Pending", state={"waiting": {"reason": "ContainerCreating"}})
    pulling = an_event("Pulling", "Pulling image x")
    assert state(STARTING, pod, events=[pulling]).reason == "its image is being pulled"
    assert not state(STARTING, pod, events=[pulling, an_event("Pulled", "Successfully pulled image")]).reason
