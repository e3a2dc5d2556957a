"""The verbs: what a person asks for, in terms of records, sources and a data plane."""

from __future__ import annotations

import dataclasses
import difflib
import time
from collections.abc import Mapping
from typing import Any

from mlflow_domino.access import Access
from mlflow_domino.config import Secrets, Settings, parse
from mlflow_domino.data_planes.base import DataPlane, Log
from mlflow_domino.data_planes.declaration import declared
from mlflow_domino.data_planes.kinds import plane_of, records_of
from mlflow_domino.disk import mount_of
from mlflow_domino.errors import AlreadyExists, DominoError, InvalidInput, NotFound, Refused, Unsupported
from mlflow_domino.home import Home
from mlflow_domino.journal import Journal
from mlflow_domino.models import Endpoint, Status, Target, Token, Version, check_name, new_id
from mlflow_domino.publication import Publication
from mlflow_domino.rollout import Rollout, routed
from mlflow_domino.store import Records
from mlflow_domino.views import EndpointView, Sight

__all__ = ["Controller", "routes_to"]


def _quiet(_line: str) -> None:
    pass


class Controller:
    """Verbs on the endpoints of one data plane.

    Parameters
    ----------
    home : Home
    plane : DataPlane
    records : Records
    say : callable
        Takes a line of progress for whoever waits.
    """

    def __init__(
        self, home: Home, plane: DataPlane, records: Records, say: Log = _quiet, *, recover: bool = True
    ) -> None:
        self.home = home
        self.plane = plane
        self.records = records
        self._say = say
        self._rollout = Rollout(records, plane, say)
        self._access = Access(home, records, plane, say)
        self._journal = Journal(records, plane, self._rollout, find=self._find, say=say)
        self._publication = Publication(home, records, plane, self._rollout, find=self._find, say=say)
        self.sight = Sight(home, plane, records)
        if recover:
            self.sight.if_answered(self._journal.recover)

    @classmethod
    def open(
        cls, target_uri: str = "domino", *, home: Home | None = None, say: Log = _quiet, recover: bool = True
    ) -> Controller:
        """Return the controller of the data plane that a target URI names; finishes or undoes what was interrupted."""
        home = home or Home.find()
        home.ensure()
        mount = mount_of(home.root)
        if mount is not None and mount.shared:
            raise Unsupported(
                f"{home.root} lies on a network file system ({mount.kind}), where records and sockets do not work; set "
                "MLFLOW_DOMINO_HOME to a folder on a disk of this machine."
            )
        plane = plane_of(home, declared(target_uri, home))
        return cls(home, plane, records_of(home, plane), say, recover=recover)

    # ---- endpoints and versions ----------------------------------------------------------------------------------

    def create_endpoint(self, name: str, config: Mapping[str, Any] | None = None) -> Endpoint:
        """Make an endpoint without a version.

        Raises
        ------
        AlreadyExists
            When the name is taken.
        """
        check_name(name)
        settings, secrets = parse(config)
        self._check_async(settings)
        endpoint = Endpoint(new_id(), name, self.plane.name, int(time.time() * 1000), settings=settings)
        endpoint = self.records.save_endpoint(endpoint)
        self.records.save_secrets(endpoint, secrets)
        return endpoint

    def create(self, name: str, model_uri: str, config: Mapping[str, Any] | None = None) -> tuple[EndpointView, str]:
        """Make an endpoint with its first version, and wait until it answers.

        An endpoint of that name that never had a version which ran is taken over.

        Returns
        -------
        EndpointView, str
            And a token, which is shown this once.
        """
        check_name(name)
        self._check_async(parse(config)[0])  # before anything is made
        self.plane.prepare()
        self._rollout.up()
        existing = next((e for e in self.records.endpoints() if e.name == name), None)
        if existing is not None and existing.latest is not None:
            raise AlreadyExists(f"Endpoint {name!r} exists; `update` publishes a new version of it.")
        endpoint = existing or self.create_endpoint(name, config)
        try:
            with self._journal.changing(endpoint.id, "create") as endpoint:
                if endpoint.latest is not None:
                    raise AlreadyExists(f"Endpoint {name!r} exists; `update` publishes a new version of it.")
                if existing is not None and self._was_begun(endpoint):
                    endpoint = self._forget_settings(endpoint)
                token = self._access.first(endpoint)
                self._publish_version(endpoint, model_uri, config)
        except DominoError as error:
            # A refusal leaves nothing behind; a failure leaves its logs, where it came so far.
            if existing is None and (isinstance(error, Refused) or not self.records.versions(endpoint.id)):
                self._undo(endpoint)
            raise
        if self.plane.caution:
            self._say(f"note: {self.plane.caution}")
        return self.endpoint(name), token

    def update(self, name: str, model_uri: str | None = None, config: Mapping[str, Any] | None = None) -> EndpointView:
        """Publish a new version, of the same source where `model_uri` is None; or only scale."""
        endpoint = self._find(name)
        if model_uri is None and set(config or {}) == {"replicas"}:
            return self.scale(name, parse(config)[0].replicas)
        if model_uri is None and endpoint.latest is None:
            raise InvalidInput(f"Endpoint {name!r} has no version yet: name a model with -m.")
        self._rollout.up()
        with self._journal.changing(endpoint.id, "update") as endpoint:
            self._publish_version(endpoint, model_uri, config)
            self._discard_old(endpoint.id)
        return self.endpoint(name)

    def delete(self, name: str) -> None:
        """Remove an endpoint and all that is its; one that is not there is no error."""
        endpoint = next((e for e in self.records.endpoints() if name in (e.name, e.id)), None)
        if endpoint is None:
            return
        with self._journal.changing(endpoint.id, "delete") as endpoint:
            self._rollout.remove(endpoint)
        self.sight.forget(endpoint.id)

    def start(self, name: str) -> EndpointView:
        """Run a stopped endpoint's versions again, and route to them when they answer."""
        endpoint = self._find(name)
        self._rollout.up()
        with self._journal.changing(endpoint.id, "start") as endpoint:
            if endpoint.latest is None:
                raise InvalidInput(f"Endpoint {name!r} has no version yet; `update` publishes one.")
            for version_id in routed(endpoint):
                self._rollout.start(endpoint, self._version(endpoint, version_id=version_id))
            self._route(endpoint, target=Target.RUNNING)
        return self.endpoint(name)

    def stop(self, name: str) -> EndpointView:
        """Answer 503 from now on, finish the requests in flight, end the replicas."""
        endpoint = self._find(name)
        with self._journal.changing(endpoint.id, "stop") as endpoint:
            self._route(endpoint, target=Target.STOPPED)
        return self.endpoint(name)

    def promote(self, name: str, number: int | None = None) -> EndpointView:
        """Point `labels/prod` at a version, the latest one by default."""
        endpoint = self._find(name)
        if endpoint.settings.routing_mode != "advanced":
            raise InvalidInput(
                f"Endpoint {name!r} has basic routing; `update -C routing_mode=advanced` adds labels/prod."
            )
        self._rollout.up()
        with self._journal.changing(endpoint.id, "promote") as endpoint:
            version = self._version(endpoint, number=number)
            self._ensure_running(endpoint, version)
            self._route(endpoint, promoted=version.id)
        return self.endpoint(name)

    def rollback(self, name: str, number: int | None = None) -> EndpointView:
        """Point `latest` at an older version, the one before by default."""
        endpoint = self._find(name)
        self._rollout.up()
        with self._journal.changing(endpoint.id, "rollback") as endpoint:
            if number is None and endpoint.previous not in {v.id for v in self.records.versions(endpoint.id)}:
                raise InvalidInput(f"Endpoint {name!r} has no earlier version to go back to.")
            version = self._version(endpoint, number=number, version_id=endpoint.previous if number is None else None)
            self._ensure_running(endpoint, version)
            previous = endpoint.latest if endpoint.latest != version.id else endpoint.previous
            settings = dataclasses.replace(version.settings, replicas=endpoint.settings.replicas)
            self._route(endpoint, latest=version.id, previous=previous, settings=settings)
        return self.endpoint(name)

    def scale(self, name: str, replicas: int) -> EndpointView:
        """Run so many replicas of each routed version."""
        parse({"replicas": replicas})
        endpoint = self._find(name)
        self._rollout.up()
        with self._journal.changing(endpoint.id, "scale") as endpoint:
            for version_id in routed(endpoint):
                self._scale_version(endpoint, self._version(endpoint, version_id=version_id), replicas)
            settings = dataclasses.replace(endpoint.settings, replicas=replicas)
            self.records.save_endpoint(dataclasses.replace(endpoint, settings=settings))
        return self.endpoint(name)

    # ---- looking -------------------------------------------------------------------------------------------------

    def endpoint(self, name: str) -> EndpointView:
        """Return an endpoint as it is; as it was last seen, where the data plane does not answer."""
        return self.sight.one(name, self._find)

    def endpoints(self) -> list[EndpointView]:
        """Return all endpoints, as `endpoint` does."""
        return self.sight.all()

    def find_version(self, name: str, number: int | None = None) -> Version:
        """Return a version by number; the one behind `latest`, or else the newest, where none is given."""
        endpoint = self._find(name)
        if number is None and endpoint.latest is None:
            versions = self.records.versions(endpoint.id)
            if not versions:
                raise NotFound(f"Endpoint {name!r} has no version yet.")
            return versions[-1]
        return self._version(endpoint, number=number)

    def secrets(self, endpoint: Endpoint) -> Secrets:
        """Return what the next version starts from: the latest one's, or those that an endpoint without one was made with."""
        latest = next((v for v in self.records.versions(endpoint.id) if v.id == endpoint.latest), None)
        return self.records.secrets(latest or endpoint)

    def export(
        self, name: str, reference: str, number: int | None = None, *, user: tuple[str, str] | None = None
    ) -> str:
        """Push the image of a built version to a registry, under a name of its own; return its digest there.

        Parameters
        ----------
        reference : str
            ``registry/name:tag``.
        user : tuple of str
            User and password of the registry, which are not kept; None for what Docker knows.
        """
        version = self.find_version(name, number)
        if version.artifact is None:
            raise InvalidInput(f"Version {version.number} of {name!r} was never built, and has no image.")
        return self.plane.export(version, reference, self._say, user=user)

    # ---- tokens --------------------------------------------------------------------------------------------------

    def tokens(self, name: str) -> list[Token]:
        return self.records.tokens(self._find(name).id)

    def create_token(self, name: str, token_name: str) -> tuple[Token, str]:
        """Make a token valid beside the others; return when every replica accepts it.

        Returns
        -------
        Token, str
            The record and the token itself, which is shown this once.
        """
        return self._access.create(self._find(name), token_name)

    def revoke_token(self, name: str, token: str) -> None:
        """End a token, by name or id; return when every replica refuses it. Repeating it is no error."""
        self._access.revoke(self._find(name), token)

    # ---- the data plane ------------------------------------------------------------------------------------------

    def up(self) -> bool:
        """Start the data plane, with every endpoint as it was; false when it is up already."""
        return self._rollout.up()

    def down(self) -> None:
        """Finish the requests in flight, then stop everything; `up` brings it back as it was."""
        self._rollout.quiet()
        self.plane.down()

    # ---- inside --------------------------------------------------------------------------------------------------

    def _find(self, name: str) -> Endpoint:
        known = self.records.endpoints()
        for endpoint in known:
            if name in (endpoint.name, endpoint.id):
                if endpoint.data_plane != self.plane.name:
                    raise NotFound(
                        f"Endpoint {name!r} is on the data plane {endpoint.data_plane!r}: -t domino:/{endpoint.data_plane}"
                    )
                return endpoint
        near = difflib.get_close_matches(name, [e.name for e in known if e.data_plane == self.plane.name], n=1)
        hint = f"did you mean {near[0]!r}?" if near else "`mlflow-domino endpoint list` shows those that are."
        raise NotFound(f"There is no endpoint {name[:120]!r}; {hint}")

    def _version(self, endpoint: Endpoint, *, number: int | None = None, version_id: str | None = None) -> Version:
        versions = self.records.versions(endpoint.id)
        wanted = version_id or (endpoint.latest if number is None else None)
        for version in versions:
            if version.id == wanted or version.number == number:
                return version
        numbers = ", ".join(str(v.number) for v in versions) or "none"
        raise NotFound(
            f"Endpoint {endpoint.name!r} has no version {number if number is not None else wanted}; there are: {numbers}."
        )

    def _undo(self, endpoint: Endpoint) -> None:
        """Remove an endpoint that was made just now, unless it has a version all the same."""
        try:
            if self._find(endpoint.id).latest is None:
                self.delete(endpoint.id)
        except DominoError as error:  # the refusal itself tells more
            self._say(f"what was made of {endpoint.name!r} could not be removed: {error.message}")

    def _was_begun(self, endpoint: Endpoint) -> bool:
        """Whether a create came so far, and no further; its settings are not the next one's."""
        return bool(self.records.versions(endpoint.id)) or self._access.is_begun(endpoint)

    def _forget_settings(self, endpoint: Endpoint) -> Endpoint:
        self.records.save_secrets(endpoint, Secrets())
        return self.records.save_endpoint(dataclasses.replace(endpoint, settings=Settings()))

    def _publish_version(self, endpoint: Endpoint, model_uri: str | None, config: Mapping[str, Any] | None) -> None:
        before = self.secrets(endpoint)
        settings, secrets = parse(config, base=endpoint.settings, base_secrets=before)
        self._check_async(settings, endpoint)
        asked = model_uri if model_uri is not None else self._version(endpoint, version_id=endpoint.latest)
        version = self._publication.fetch(endpoint, asked, settings, secrets)
        version = self._publication.build(endpoint, version, secrets)
        self._rollout.start(endpoint, version)
        self._route(endpoint, target=Target.RUNNING, settings=settings, **routes_to(endpoint, version, settings))
        self.records.save_secrets(endpoint, Secrets())  # from here on they are the version's

    def _check_async(self, settings: Settings, endpoint: Endpoint | None = None) -> None:
        """Refuse what is asynchronous where that cannot be, and an endpoint that would change from one to the other."""
        if settings.is_async and self.plane.no_async:
            raise Unsupported(self.plane.no_async)
        if endpoint is not None and endpoint.latest and settings.is_async != endpoint.settings.is_async:
            raise InvalidInput(
                f"is_async of {endpoint.name!r} cannot change: its callers use another URL and protocol then. Create another "
                "endpoint beside it."
            )

    def _ensure_running(self, endpoint: Endpoint, version: Version) -> None:
        if version.artifact is None:
            raise InvalidInput(
                f"Version {version.number} of {endpoint.name!r} was never built: {version.reason or version.status.value}."
            )
        if version.target is not Target.RUNNING or self.plane.observe([version])[0].status is not Status.RUNNING:
            # As many replicas as the endpoint has now, not as when the version was published.
            self._rollout.start(endpoint, self._rollout.change(version, replicas=endpoint.settings.replicas))

    def _route(self, endpoint: Endpoint, **changes: Any) -> None:
        fresh = dataclasses.replace(self._find(endpoint.id), **changes)
        self._rollout.settle(self.records.save_endpoint(fresh))

    def _scale_version(self, endpoint: Endpoint, version: Version, replicas: int) -> None:
        before = version.replicas
        if endpoint.target is not Target.RUNNING or replicas == before:
            self._rollout.change(version, replicas=replicas)
        elif replicas > before:
            self._grow(endpoint, version, replicas)
        else:
            version = self._rollout.change(version, replicas=replicas)
            self._rollout.publish()
            self.plane.drain(version, version.settings.drain_s, replicas=range(replicas, before))
            self.plane.start(endpoint, version)

    def _grow(self, endpoint: Endpoint, version: Version, replicas: int) -> None:
        """Add replicas; records, and so routes, show them when all answer. Failing, it leaves what was there."""
        try:
            self._rollout.grow(endpoint, dataclasses.replace(version, replicas=replicas))
        except BaseException:
            self.plane.start(endpoint, version)
            raise
        self._rollout.change(version, replicas=replicas)
        self._rollout.publish()

    def _discard_old(self, endpoint_id: str) -> None:
        for version in self.surplus_versions(endpoint_id):
            self.plane.discard(version)
            self.records.remove_version(version.id)

    def surplus_versions(self, endpoint_id: str) -> list[Version]:
        """Return what `keep_versions` does not keep, oldest first; never a routed, promoted or running version."""
        endpoint = self._find(endpoint_id)
        versions = self.records.versions(endpoint_id)
        kept = {endpoint.latest, endpoint.promoted, endpoint.previous}
        free = [v for v in versions if v.id not in kept and v.target is not Target.RUNNING]
        return free[: max(0, len(versions) - endpoint.settings.keep_versions)]


def routes_to(endpoint: Endpoint, version: Version, settings: Settings) -> dict[str, Any]:
    """Return what changes of an endpoint when a version is published."""
    changes: dict[str, Any] = {"latest": version.id, "previous": endpoint.latest}
    if endpoint.promoted is None and settings.routing_mode == "advanced":
        changes["promoted"] = endpoint.latest or version.id
    return changes
