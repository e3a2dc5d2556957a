"""The Kubernetes data plane: replicas as pods of a Deployment, the gateway in the same namespace, records beside them.

Everything is in the namespace's own objects, so that whoever may read them sees the same endpoints. What runs is a
function of the records, and is found by its labels.
"""

from __future__ import annotations

import contextlib
import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlflow_domino import logs, secret, source
from mlflow_domino.builder import builder_of
from mlflow_domino.cluster import Cluster
from mlflow_domino.cluster_records import KubernetesRecords
from mlflow_domino.config import Secrets, Settings
from mlflow_domino.data_planes import manifests, pods, replica
from mlflow_domino.data_planes.assembly import Assembly, recipes
from mlflow_domino.data_planes.base import DataPlane, Log, Observation, World
from mlflow_domino.data_planes.cluster_tokens import ClusterTokens
from mlflow_domino.data_planes.declaration import Declaration
from mlflow_domino.data_planes.entrance import Entrance
from mlflow_domino.data_planes.forgetting import forget_by_gateway, forget_in
from mlflow_domino.data_planes.pod_logs import PodLogs
from mlflow_domino.data_planes.rights import DEPLOY, lacking, to_install, told
from mlflow_domino.data_planes.supervisor import wait_until
from mlflow_domino.data_planes.tier import Tier, tier_named
from mlflow_domino.dialect import Manifest
from mlflow_domino.errors import DominoError, Failed, Forbidden, InvalidInput, NotFound, Unavailable
from mlflow_domino.home import Home
from mlflow_domino.labels import KIND, VERSION, labels, model_name, variables_name
from mlflow_domino.models import Artifact, Endpoint, Status, Target, Token, Version
from mlflow_domino.store import Records

__all__ = ["KubernetesDataPlane"]

_END_S = 60.0
_REACH_S = 2.5
#: Of pods whose requests are all answered.
_LAST_S = 1
_LOOK_S = 0.1
_IDLE_LOOKS = 3
_TAIL_LINES = 30
#: How what is rendered is applied by hand.
_APPLY = """\
# Names in capitals and values of … are to be filled in; --image fills in the image, here and in records.yaml.
# Of an endpoint that serves apply this first, wait for `kubectl rollout status deployment/{name}`, and then
# apply records.yaml, by which requests come to it. Of a new one apply both, and make a token, without which pods do not
# start: `mlflow-domino -t domino:/{plane} token create {endpoint} default`.
"""
#: What runs a version, in the order in which it ends.
_KINDS = ("Deployment", "PodDisruptionBudget", "Service", "ConfigMap")


class KubernetesDataPlane(DataPlane):
    """Runs versions in a namespace of a cluster, this one or a remote one."""

    look_s = 0.2

    def __init__(self, home: Home, declaration: Declaration) -> None:
        self.name = declaration.name
        self.home = home
        self.declaration = declaration
        self.no_async = declaration.no_async
        self.cluster = Cluster(declaration.context, declaration.namespace)
        self.records = KubernetesRecords(self.cluster, declaration.name)
        self.entrance = Entrance(self.cluster, declaration, home)
        self.vault = self.entrance.vault
        self.tokens = ClusterTokens(self.cluster, self.records, self.entrance)
        if not declaration.tls_secret and not declaration.url.startswith("https://"):
            self.caution = "the gateway speaks no TLS: tokens travel in clear; set tls_secret, or a url with https"

    def own_records(self) -> Records:
        return self.records

    # ---- the data plane ----------------------------------------------------------------------------------------------

    def reach(self) -> None:
        self.cluster.version(timeout_s=_REACH_S)

    def obstacle(self) -> str:
        return self.entrance.obstacle()

    def remark(self) -> str:
        return self.entrance.remark()

    def prepare(self) -> None:
        wanted = DEPLOY if self.entrance.deployed() else (*DEPLOY, *to_install(self.declaration))
        missing = lacking(self.cluster, wanted)
        if missing:
            install = " Or have an administrator run `mlflow-domino gateway install`." if wanted is not DEPLOY else ""
            raise Forbidden(
                f"You have no right to {told(missing)} in the {self._where}; an administrator grants it in a Role.{install}"
            )

    def up(self, world: World, log: Log) -> bool:
        installed = self.entrance.ensure(self.tokens.all_own(world), log)
        begun = self.entrance.quiet()
        for endpoint in world.endpoints:
            for version in world.versions:
                if version.endpoint_id == endpoint.id and version.target is Target.RUNNING:
                    with contextlib.suppress(Failed):  # its own status says why
                        begun = self._ensure(endpoint, version) or begun
        if begun:
            self.publish(world)
        return installed or begun

    def down(self) -> None:
        for deployment in self.cluster.list("Deployment", {KIND: "model"}):
            self._remove(deployment["metadata"]["labels"][VERSION])
        self.entrance.remove()

    def alive(self) -> bool:
        return self.entrance.alive()

    def url(self) -> str:
        return self.entrance.url()

    def publish(self, world: World) -> None:
        known = {e.id: e for e in self.records.endpoints()}
        silent = [e.id for e in world.endpoints if e.target is Target.STOPPED and known[e.id].target is Target.RUNNING]
        self.entrance.publish(silent)

    def drain(self, version: Version, timeout_s: float, *, replicas: Sequence[int] | None = None) -> bool:
        if replicas is not None:
            return True  # a pod that is to end finishes its requests first, and the cluster chooses which
        if version.settings.is_async:
            return self._drain_messages(version, timeout_s)
        return wait_until(lambda: self.entrance.active(version.id) == 0, timeout_s, every_s=_LOOK_S)

    def _drain_messages(self, version: Version, timeout_s: float) -> bool:
        """Wait until the pods themselves are idle: predictions do not come by way of Envoy.

        Dispatchers send nothing more once a `publish` has returned; what they sent just before is seen in a moment.
        """
        there = [pod["metadata"]["name"] for pod in self._pods_of(version)]
        looks = 0

        def idle() -> bool:
            nonlocal looks
            busy = self.entrance.active(version.id) > 0 or any(map(self._in_flight, there))
            looks = 0 if busy else looks + 1
            return looks >= _IDLE_LOOKS

        return wait_until(idle, timeout_s, every_s=_LOOK_S)

    # ---- versions ----------------------------------------------------------------------------------------------------

    def render(self, world: World, endpoint: Endpoint, version: Version, secrets: Secrets) -> dict[str, str]:
        if version.artifact is None:
            image = f"{self._registry()}/mlflow-domino-endpoint:HASH-OF-THE-CONTENT"
            version = replace(version, artifact=Artifact(image, "", "", ""))
        if version.settings.is_async and version.artifact is not None and not version.artifact.seldon:
            version = replace(version, artifact=replace(version.artifact, seldon="PYTHON-OF-SELDON-CORE"))
        assert version.artifact is not None
        hidden = secret.hidden(secrets)
        image, variables = version.artifact.environment, hidden.variables
        objects = manifests.model_manifests(
            self._place, endpoint, version, image, self._tier(version), variables=variables
        )
        if variables:
            objects = (manifests.variables_manifest(self._place, endpoint, version, variables), *objects)
        how = _APPLY.format(name=model_name(version.id), plane=self.name, endpoint=endpoint.name)
        return {
            "model.yaml": how + manifests.to_yaml(objects, self.cluster.served),
            "records.yaml": manifests.to_yaml(self.records.manifests(endpoint, version, hidden)),
            **recipes(version.settings),
        }

    def render_context(self, version: Version, secrets: Secrets, folder: Path, log: Log) -> str:
        return self._assembly.render(version, secrets, folder, log)

    def build(self, version: Version, secrets: Secrets, log: Log) -> Artifact:
        self._tier(version)  # a wrong one is known before anything is built
        registry = self._registry()
        if version.settings.is_async:
            self.vault.check_queue()
        return self._assembly.build(version, secrets, log, registry=registry)

    def restore(self, version: Version, log: Log) -> bool:
        return self._assembly.restore(version, log)

    def start(self, endpoint: Endpoint, version: Version) -> None:
        self._ensure(endpoint, version)

    def stop(self, version: Version) -> None:
        there = self._pods_of(version)
        self._pod_logs.keep(there, self.home.version(version.id) / "logs")
        # A prediction that has not ended by now is run again; a request is not.
        idle = bool(there) and (version.settings.is_async or self.entrance.active(version.id) == 0)
        self._remove(version.id)
        if idle:
            self._hasten(version, there)
        if not wait_until(lambda: not pods.alive(self._pods_of(version)), _END_S, every_s=_LOOK_S):
            raise Unavailable(
                f"Pods of version {version.number} do not end; `kubectl get pods` in {self._where} shows why."
            )

    def discard(self, version: Version) -> None:
        with contextlib.suppress(Unavailable):  # whoever published it has the image, or nobody
            self._assembly.discard(version)
        source.remove(self.home.version(version.id))

    def forget(self, endpoint: Endpoint) -> None:
        if endpoint.settings.is_async:
            self._forget_predictions(endpoint)
        self.home.caller_token(endpoint.id).unlink(missing_ok=True)
        self.tokens.forget(endpoint)

    def _forget_predictions(self, endpoint: Endpoint) -> None:
        if not self.vault.has_queue():
            return
        if self.alive():
            forget_by_gateway(self.url(), self.vault.management_token(), endpoint.id)
        elif self.declaration.queue:
            forget_in(self.declaration.queue, endpoint.id)
        else:
            raise Unavailable(
                f"The predictions of {endpoint.name!r} cannot be removed: no gateway takes requests in the {self._where}; "
                "`mlflow-domino up` starts it."
            )

    def observe(self, versions: Sequence[Version]) -> list[Observation]:
        if not any(v.target is Target.RUNNING for v in versions):
            return [Observation(Status.STOPPED) for _ in versions]
        try:
            found = self.cluster.list("Pod", labels("model", version=versions[0].id if len(versions) == 1 else ""))
            there: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
            for pod in found:
                there[pod["metadata"]["labels"][VERSION]].append(pod)
            return [self._observe(version, there[version.id]) for version in versions]
        except DominoError as error:
            unreachable = Observation(Status.UNREACHABLE, error.message)
            return [unreachable if v.target is Target.RUNNING else Observation(Status.STOPPED) for v in versions]

    def put_tokens(self, endpoint: Endpoint, tokens: Sequence[Token], versions: Sequence[Version], say: Log) -> None:
        self.tokens.put(endpoint, tokens, versions, say)

    def own_token(self, endpoint: Endpoint) -> str:
        return self.tokens.own(endpoint)

    def requirements(self, settings: Settings) -> tuple[str, ...]:
        return self._assembly.requirements(settings)

    def export(self, version: Version, reference: str, log: Log, *, user: tuple[str, str] | None = None) -> str:
        return self._assembly.export(version, reference, log, user=user)

    def logs(self, version: Version, *, build: bool = False, replica: int | None = None) -> list[Path]:
        folder = self.home.version(version.id)
        if build:
            return [folder / "build.log"]
        there = pods.serving(self._pods_of(version))
        wanted = there if replica is None else there[replica : replica + 1]
        found = [self._pod_logs.copy(pod, folder / "logs") for pod in wanted]
        # Those of pods that a command here has ended were copied before.
        return found if replica is not None else [*sorted({*(folder / "logs").glob("*.log")} - {*found}), *found]

    # ---- inside ------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _assembly(self) -> Assembly:
        return Assembly(self.home, builder_of, self.declaration.base_image)

    @functools.cached_property
    def _pod_logs(self) -> PodLogs:
        return PodLogs(self.cluster)

    @property
    def _place(self) -> manifests.Place:
        return manifests.Place(self.cluster.namespace, self.declaration.pull_secret)

    @property
    def _where(self) -> str:
        return f"namespace {self.cluster.namespace!r} of {self.cluster}"

    def _registry(self) -> str:
        if not self.declaration.registry:
            raise InvalidInput(
                f"The data plane {self.name!r} has no registry, which the cluster could pull images from: set `registry` "
                f"under [data_planes.{self.name}] in {self.home.config}."
            )
        return self.declaration.registry

    def _tier(self, version: Version) -> Tier:
        return tier_named(version.settings.hardware_tier, self.home, plane=self.name)

    def _ensure(self, endpoint: Endpoint, version: Version) -> bool:
        """Have the version's objects be there, with its replicas; whether something was changed is returned."""
        if version.artifact is None:
            raise Failed(f"Version {version.number} was never built.")
        name = model_name(version.id)
        found = self.cluster.get("Deployment", name)
        budget = self.cluster.get("PodDisruptionBudget", name)
        as_it_is = found is not None and found["spec"].get("replicas") == version.replicas
        if as_it_is and (budget is not None) == (version.replicas > 1):
            return False
        secrets = self.records.secrets(version)
        objects = manifests.model_manifests(
            self._place,
            endpoint,
            version,
            version.artifact.environment,
            self._tier(version),
            variables=secrets.variables,
        )
        if found is not None:
            # A version never changes, so that another release's idea of a pod does not replace those that run.
            self.cluster.patch("Deployment", name, {"spec": {"replicas": version.replicas}})
            objects = tuple(o for o in objects if o["kind"] == "PodDisruptionBudget")
            if version.replicas < 2:
                self.cluster.delete("PodDisruptionBudget", name)
        else:
            self.tokens.ensure(endpoint, version)
            if secrets.variables:
                variables = manifests.variables_manifest(self._place, endpoint, version, secrets.variables)
                self.cluster.apply(variables)
        for manifest in objects:
            self.cluster.apply(manifest)
        return True

    def _pods_of(self, version: Version) -> list[Manifest]:
        return self.cluster.list("Pod", labels("model", version=version.id))

    def _hasten(self, version: Version, there: Sequence[Manifest]) -> None:
        """End pods that have nothing left to do without the time that they have for requests."""
        with contextlib.suppress(DominoError):  # it would only be sooner: the cluster ends them
            for one in self.cluster.list("ReplicaSet", labels("model", version=version.id)):
                self.cluster.delete("ReplicaSet", one["metadata"]["name"])  # or it would make others in their place
            for pod in there:
                self.cluster.delete("Pod", pod["metadata"]["name"], grace_s=_LAST_S)

    def _remove(self, version_id: str) -> None:
        for kind in _KINDS:
            self.cluster.delete(kind, model_name(version_id))
        self.cluster.delete("Secret", variables_name(version_id))

    def _observe(self, version: Version, found: Sequence[Mapping[str, Any]]) -> Observation:
        if version.target is not Target.RUNNING:
            return Observation(Status.STOPPED)
        seen = replica.summary(version, pods.states(version, found))
        if seen.status is Status.RUNNING and not seen.reason:
            return seen
        deployment = self.cluster.get("Deployment", model_name(version.id))
        guilty = pods.blamed(found)
        events = self.cluster.events(guilty[0]) if guilty else ()
        seen = replica.summary(version, pods.states(version, found, events=events, deployment=deployment))
        tail = self._tail(version, *guilty) if guilty and (guilty[1] or seen.status is not Status.STARTING) else ""
        return Observation(seen.status, seen.reason, seen.ready, seen.failed, tail)

    def _tail(self, version: Version, pod: Mapping[str, Any], before: bool) -> str:
        text = self._log_of(pod, _TAIL_LINES * 3, previous=before)
        clean = logs.redact(text, self.records.secrets(version).variables.values())
        return logs.explaining(clean, _TAIL_LINES)

    def _log_of(self, pod: Mapping[str, Any], lines: int, *, previous: bool = False) -> str:
        return self.cluster.pod_log(pod["metadata"]["name"], "model", tail=lines, previous=previous)

    def _in_flight(self, pod: str) -> int:
        """Return how many predictions a pod runs; 0 for one that is gone, or does not say."""
        try:
            _status, headers, _body = self.cluster.proxy(pod, manifests.PROBE_PORT, "/ready")
        except (NotFound, Unavailable):
            return 0
        told = {k.lower(): v for k, v in headers.items()}.get("x-domino-in-flight", "")
        return int(told) if told.isdecimal() else 0
