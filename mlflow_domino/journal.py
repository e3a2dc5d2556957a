"""What is being done to which endpoint, written down before it is done, so that a killed command can be made good."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator

from mlflow_domino.data_planes.base import DataPlane, Log
from mlflow_domino.errors import Conflict, DominoError, Forbidden, NotFound
from mlflow_domino.models import Endpoint, Operation
from mlflow_domino.rollout import Rollout
from mlflow_domino.store import Records

__all__ = ["Journal"]


class Journal:
    """Holds endpoints for one verb at a time, and puts in order what a verb left half-way.

    Parameters
    ----------
    find : callable
        Gives an endpoint by its id, or raises `NotFound`.
    """

    def __init__(
        self,
        records: Records,
        plane: DataPlane,
        rollout: Rollout,
        *,
        find: Callable[[str], Endpoint],
        say: Log,
    ) -> None:
        self._records = records
        self._plane = plane
        self._rollout = rollout
        self._find = find
        self._say = say

    @contextlib.contextmanager
    def changing(self, endpoint_id: str, verb: str) -> Iterator[Endpoint]:
        """Hold the endpoint alone, write down what is about to happen, and undo it when it does not happen.

        Raises
        ------
        Conflict
            Somebody else holds it.
        """
        running = next((o for o in self._records.operations() if o.endpoint_id == endpoint_id), None)
        busy = f"`{running.verb}` is at work on it (process {running.pid})" if running else "somebody is changing it"
        conflict = f"This endpoint is not free: {busy}. Try again when that is done."
        with self._records.lock(endpoint_id, wait=False, conflict=conflict):
            endpoint = self._find(endpoint_id)
            self._records.save_operation(Operation(endpoint_id, verb, "begun", os.getpid(), int(time.time() * 1000)))
            try:
                yield endpoint
            except BaseException:
                with contextlib.suppress(NotFound):
                    self._put_in_order(self._find(endpoint_id))
                self._records.remove_operation(endpoint_id)  # what cannot be put in order is the next command's
                raise
            self._records.remove_operation(endpoint_id)

    def recover(self) -> None:
        """Finish or undo what a killed process left half-way, and say so; whoever may only look, looks."""
        with contextlib.suppress(Forbidden):
            self._records.tidy()
        elsewhere = {e.id for e in self._records.endpoints() if e.data_plane != self._plane.name}
        for operation in self._records.operations():
            if operation.endpoint_id in elsewhere:
                continue
            with contextlib.suppress(Conflict, Forbidden), self._records.lock(operation.endpoint_id, wait=False):
                if operation.endpoint_id not in {o.endpoint_id for o in self._records.operations()}:
                    continue
                try:
                    self._settle(operation)
                    self._records.remove_operation(operation.endpoint_id)
                except DominoError as error:  # nobody is kept from looking at it, or from deleting it
                    self._say(f"`{operation.verb}` was interrupted, and cannot be put in order yet: {error.message}")

    def _settle(self, operation: Operation) -> None:
        endpoint = next((e for e in self._records.endpoints() if e.id == operation.endpoint_id), None)
        if endpoint is None:
            self._records.remove_endpoint(
                operation.endpoint_id
            )  # what else is its; not every place removes all at once
            return
        what = f"`{operation.verb}` of {endpoint.name!r} was interrupted (process {operation.pid})"
        self._rollout.up()
        if operation.verb == "delete":
            self._rollout.remove(endpoint)
            self._say(f"{what}: finished it.")
            return
        self._rollout.catch_up(endpoint)
        self._put_in_order(endpoint)
        current = next((v.number for v in self._records.versions(endpoint.id) if v.id == endpoint.latest), None)
        state = f"latest is version {current}" if current else "it has no version"
        self._say(f"{what}: put in order, {state}.")

    def _put_in_order(self, endpoint: Endpoint) -> None:
        """Have what runs be as the records say, and the settings tell what runs: `scale` writes one after the other."""
        self._rollout.settle(endpoint)
        latest = next((v for v in self._records.versions(endpoint.id) if v.id == endpoint.latest), None)
        if latest is not None and latest.replicas != endpoint.settings.replicas:
            settings = dataclasses.replace(endpoint.settings, replicas=latest.replicas)
            self._records.save_endpoint(dataclasses.replace(endpoint, settings=settings))
