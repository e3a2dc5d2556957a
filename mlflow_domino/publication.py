"""What becomes a version before anything runs: the copy of a source, the record of it, and the build."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable

from mlflow_domino import source
from mlflow_domino.config import Secrets, Settings
from mlflow_domino.data_planes.base import DataPlane, Log
from mlflow_domino.errors import DominoError
from mlflow_domino.home import Home
from mlflow_domino.models import Endpoint, Status, Version, new_id
from mlflow_domino.rollout import Rollout
from mlflow_domino.store import Records

__all__ = ["Publication"]


class Publication:
    """Makes versions of the endpoints of one data plane; whoever calls has the endpoint to itself.

    Parameters
    ----------
    home : Home
    records : Records
    plane : DataPlane
    rollout : Rollout
    find : callable
        Returns an endpoint as it is now, by id.
    say : callable
        Takes a line of progress for whoever waits.
    """

    def __init__(
        self,
        home: Home,
        records: Records,
        plane: DataPlane,
        rollout: Rollout,
        *,
        find: Callable[[str], Endpoint],
        say: Log,
    ) -> None:
        self._home = home
        self._records = records
        self._plane = plane
        self._rollout = rollout
        self._find = find
        self._say = say

    def fetch(self, endpoint: Endpoint, asked: str | Version, settings: Settings, secrets: Secrets) -> Version:
        """Copy a source into the new version's folder, and write the version down.

        Parameters
        ----------
        endpoint : Endpoint
        asked : str or Version
            A URI, or a version whose source is meant.
        settings : Settings
        secrets : Secrets
            Both of the new version.
        """
        version_id = new_id()
        folder = self._home.version(version_id)
        folder.mkdir(mode=0o700, parents=True)
        try:
            if isinstance(asked, Version):
                self._plane.restore(asked, self._say)
                place = self._home.version(asked.id)
                fetched = source.again(place, asked.source, settings, folder, self._say, variables=secrets.variables)
            else:
                self._say(f"fetching {source.shown(asked)} …")
                fetched = source.fetch(asked, settings, folder, self._say, variables=secrets.variables)
            fresh = self._records.save_endpoint(
                dataclasses.replace(self._find(endpoint.id), next_number=endpoint.next_number + 1)
            )
            now_ms = int(time.time() * 1000)
            version = Version(
                version_id, endpoint.id, fresh.next_number - 1, now_ms, fetched, settings, replicas=settings.replicas
            )
            version = self._records.save_version(version)
            self._records.save_secrets(version, secrets)  # second: those of a version that is in no record would stay
            return version
        except BaseException:
            source.remove(folder)
            with contextlib.suppress(DominoError):
                self._records.remove_version(version_id)
            raise

    def build(self, endpoint: Endpoint, version: Version, secrets: Secrets) -> Version:
        """Build what a version runs in; one that cannot be built says so in its record."""
        version = self._rollout.change(version, status=Status.BUILDING)
        self._say(f"building version {version.number} of {endpoint.name!r} …")
        try:
            artifact = self._plane.build(version, secrets, self._say)
        except DominoError as error:
            self._rollout.change(version, status=Status.FAILED, reason=error.message)
            raise
        return self._rollout.change(version, status=Status.READY_TO_RUN, artifact=artifact)
