"""Bring what runs in line with the records, whatever happened before.

`settle` is the only way by which routes move and versions end: a verb writes down what it wants and calls it; the
command after a crash calls it with what was written down.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator

from mlflow_domino.data_planes.base import DataPlane, Log, Observation, World
from mlflow_domino.errors import GatewayFailed, StartFailed
from mlflow_domino.models import Endpoint, Status, Target, Version
from mlflow_domino.store import Records

__all__ = ["Rollout", "routed"]

_UNFINISHED = (Status.PREPARING, Status.BUILDING, Status.STARTING)
#: Bound of the setting `replicas`.
_MOST_REPLICAS = 32


def routed(endpoint: Endpoint) -> tuple[str, ...]:
    """Return the ids of the versions that `latest` and, with advanced routing, `labels/prod` mean."""
    wanted = [endpoint.latest]
    if endpoint.settings.routing_mode == "advanced":
        wanted.append(endpoint.promoted)
    return tuple(dict.fromkeys(v for v in wanted if v is not None))


class Rollout:
    """Starts, switches and ends versions of one data plane."""

    def __init__(self, records: Records, plane: DataPlane, say: Log) -> None:
        self._records = records
        self._plane = plane
        self._say = say

    def world(self) -> World:
        """Return all records of the data plane."""
        endpoints = [e for e in self._records.endpoints() if e.data_plane == self._plane.name]
        ids = {e.id for e in endpoints}
        return World(tuple(endpoints), tuple(v for v in self._records.versions() if v.endpoint_id in ids))

    def up(self) -> bool:
        """Start the data plane, with every version whose target is to run; false when it is up already."""
        return self._plane.up(self.world(), self._say)

    def publish(self) -> None:
        """Route as the records say. Two processes never write routes at once, and the later one has read later."""
        with self._records.lock("records"):
            self._plane.publish(self.world())

    def start(self, endpoint: Endpoint, version: Version) -> Version:
        """Run a version and wait until it answers, without routing to it.

        Raises
        ------
        StartFailed
            When it fails or is not ready within ``start_timeout_s``; nothing of it runs then.
        """
        version = self.change(version, target=Target.RUNNING, status=Status.STARTING, reason="")
        self._plane.start(endpoint, version)
        seen = self._await_ready(version)
        if seen.status is not Status.RUNNING or seen.ready < version.replicas:
            self._plane.stop(version)
            status = Status.STALLED if seen.status is Status.STALLED else Status.FAILED
            self.change(version, target=Target.STOPPED, status=status, reason=seen.reason)
            raise StartFailed(
                f"Version {version.number} of {endpoint.name!r} did not become ready: {seen.reason}",
                log_tail=seen.log_tail,
            )
        return self.change(version, status=Status.RUNNING)

    def grow(self, endpoint: Endpoint, version: Version) -> None:
        """Run more replicas of a version that runs, and wait until all answer.

        Raises
        ------
        StartFailed
            When one of them does not become ready; the caller ends the new ones.
        """
        self._plane.start(endpoint, version)
        seen = self._await_ready(version)
        if seen.status is not Status.RUNNING or seen.ready < version.replicas:
            raise StartFailed(
                f"{version.replicas} replicas of version {version.number} of {endpoint.name!r} did not become ready: "
                f"{seen.reason}",
                log_tail=seen.log_tail,
            )

    def settle(self, endpoint: Endpoint) -> None:
        """Move routes, then drain and end every version that they do not need; safe to repeat.

        A version that was being built or started and is not routed counts as interrupted.
        """
        wanted = set(routed(endpoint)) if endpoint.target is Target.RUNNING else set()
        versions = self._records.versions(endpoint.id)
        for version in versions:
            if version.id in wanted and version.target is not Target.RUNNING:
                self.change(version, target=Target.RUNNING, status=Status.RUNNING)
            elif version.id not in wanted and version.status in _UNFINISHED:
                status = Status.FAILED if version.artifact is None else Status.READY_TO_RUN
                self.change(version, target=Target.STOPPED, status=status, reason="interrupted before it was ready")
            elif version.id not in wanted and version.target is Target.RUNNING:
                self.change(version, status=Status.STOPPED)  # its own route goes too, or it would never be idle
        versions = self._records.versions(endpoint.id)
        for version in versions:
            if version.id in wanted:
                self._plane.start(endpoint, version)
        self.publish()
        surplus = [v for v in versions if v.id not in wanted]
        self._end([v for v in surplus if v.target is Target.RUNNING], endpoint.settings.drain_s)
        for version in surplus:
            if version.target is not Target.RUNNING:
                self._plane.stop(version)  # what a killed process may have left

    def catch_up(self, endpoint: Endpoint) -> None:
        """Let replicas that a killed process was scaling away finish, before `settle` ends them."""
        if endpoint.target is Target.RUNNING:
            self.publish()
            for version in self._records.versions(endpoint.id):
                if version.id in routed(endpoint):
                    surplus = range(version.replicas, _MOST_REPLICAS)
                    self._plane.drain(version, endpoint.settings.drain_s, replicas=surplus)

    def quiet(self) -> None:
        """Refuse new requests to every endpoint, and wait until those in flight have their answers.

        The records stay as they are: what runs comes back with the next `up`.
        """
        if not self._plane.alive():
            return
        world = self.world()
        silent = World(
            tuple(dataclasses.replace(e, target=Target.STOPPED) for e in world.endpoints),
            tuple(dataclasses.replace(v, status=Status.STOPPED) for v in world.versions),
        )
        running = [v for v in world.versions if v.target is Target.RUNNING]
        begun = time.monotonic()
        with contextlib.suppress(GatewayFailed):  # nobody reaches a model past a gateway that does not answer
            with self._records.lock("records"):
                self._plane.publish(silent)
            for version in running:
                self._plane.drain(version, max(0.0, begun + version.settings.drain_s - time.monotonic()))

    def remove(self, endpoint: Endpoint) -> None:
        """Take the endpoint's routes away, finish its requests, end and discard its versions, forget it."""
        current = next((e for e in self._records.endpoints() if e.id == endpoint.id), endpoint)
        self._records.save_endpoint(dataclasses.replace(current, target=Target.STOPPED))
        self.publish()
        versions = self._records.versions(endpoint.id)
        self._end([v for v in versions if v.target is Target.RUNNING], endpoint.settings.drain_s)
        for version in versions:
            self._plane.stop(version)
            self._plane.discard(version)
        with self._records.lock(f"tokens-{endpoint.id}"):  # or a token made meanwhile would stay
            self._plane.forget(endpoint)
            self._records.remove_endpoint(endpoint.id)
        self._records.forget_lock(f"tokens-{endpoint.id}")
        self.publish()  # callers are told that it is not there, no longer that it is stopped
        self._records.forget_lock(endpoint.id)  # last: whoever takes a new one finds no endpoint

    def change(self, version: Version, **fields: object) -> Version:
        """Write some fields of a version's record, whatever its revision was: the endpoint's lock is ours."""
        current = next((v for v in self._records.versions(version.endpoint_id) if v.id == version.id), version)
        return self._records.save_version(dataclasses.replace(current, **fields))  # type: ignore[arg-type]

    def _end(self, versions: list[Version], drain_s: float) -> None:
        """Drain versions that no route shows any more, and end them."""
        deadline = time.monotonic() + drain_s
        for version in versions:
            if not self._plane.drain(version, max(0.0, deadline - time.monotonic())):
                self._say(f"version {version.number} had requests in flight after {drain_s:g} s; they are cut off")
        for version in versions:
            self.change(version, target=Target.STOPPED, status=Status.STOPPED)
        if versions:
            self.publish()
        for version in versions:
            self._plane.stop(version)

    def _await_ready(self, version: Version) -> Observation:
        deadline = time.monotonic() + version.settings.ready_within_s
        with _said_while_waiting(self._say, f"starting version {version.number}"):
            while True:
                seen = self._plane.observe([version])[0]
                if seen.status is Status.RUNNING and seen.ready >= version.replicas:
                    return seen
                if seen.failed or seen.status in (Status.FAILED, Status.UNREACHABLE):
                    return seen
                if time.monotonic() > deadline:
                    late = f"it was not ready after {version.settings.ready_within_s:g} s (start_timeout_s)"
                    reason = f"{late}; {seen.reason}" if seen.reason else late
                    return dataclasses.replace(seen, status=Status.STALLED, reason=reason)
                time.sleep(self._plane.look_s)


@contextlib.contextmanager
def _said_while_waiting(say: Callable[[str], None], what: str) -> Iterator[None]:
    begun = time.monotonic()
    say(f"{what} …")
    yield
    took = time.monotonic() - begun
    if took > 2:
        say(f"{what}: {took:.1f} s")
