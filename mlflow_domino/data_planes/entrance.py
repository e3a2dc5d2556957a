"""The entrance to a namespace of a cluster: the gateway's objects, installed, renewed, asked and removed.

A gateway of an older release is rolled, pod after pod, while it serves: a new pod takes requests once it has read every
record, an old one ends when it has nothing left to do. One that does not come up leaves the old one as it was.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from mlflow_domino.builder import builder_of
from mlflow_domino.cluster import Cluster
from mlflow_domino.data_planes.address import unanswered, url_of
from mlflow_domino.data_planes.declaration import Declaration
from mlflow_domino.data_planes.fleet import Fleet, meant_to_run, rolled_out, runs, unmade
from mlflow_domino.data_planes.gateway_image import gateway_image, of_older_version, older, release
from mlflow_domino.data_planes.installation import gateway_files, gateway_manifests
from mlflow_domino.data_planes.manifests import Place
from mlflow_domino.data_planes.vault import Vault
from mlflow_domino.dialect import Manifest
from mlflow_domino.errors import Conflict, DominoError, Forbidden, GatewayFailed, InvalidInput, NotFound, Unavailable
from mlflow_domino.home import Home
from mlflow_domino.labels import GATEWAY, GATEWAY_TOKENS, GENERATION_MAP, RELEASE, labels

__all__ = ["Entrance"]

Say = Callable[[str], None]

_PUBLISH_S = 15.0
_ROLLOUT_S = 300.0
_ADDRESS_S = 120.0
#: Time in which every node knows the way to the gateway.
_ANSWER_S = 10.0
_END_S = 60.0
#: Of pods that nobody needs any more.
_LAST_S = 2
_LOOK_S = 0.25
_TELL_S = 10.0
#: What a declaration may no longer want, and what goes with the gateway's last pod; the rest keeps its address.
_OPTIONAL = ("PodDisruptionBudget", "Ingress")
_KINDS = ("Deployment", *_OPTIONAL, "Service", "RoleBinding", "Role", "ServiceAccount")


def _silently(_: str) -> None:
    pass


class Entrance:
    """The gateway of a data plane.

    Parameters
    ----------
    cluster : Cluster
    declaration : Declaration
    home : Home
        Where what is built is kept.
    """

    def __init__(self, cluster: Cluster, declaration: Declaration, home: Home) -> None:
        self._cluster = cluster
        self._declaration = declaration
        self._home = home
        self._fleet = Fleet(cluster)
        self.vault = Vault(cluster, declaration, home)

    # ---- what runs ---------------------------------------------------------------------------------------------------

    def ensure(self, tokens: Mapping[str, str], say: Say = _silently) -> bool:
        """Install the gateway where there is none, or one of an older release, and wait until it takes requests.

        False when there was nothing to do, and nothing to wait for.

        Parameters
        ----------
        tokens : mapping of str to str
            The gateway's own token for each endpoint, by the endpoint's id.

        Raises
        ------
        DominoError
            As `install`.
        """
        self._put_tokens(tokens)
        deployment = self._deployment()
        wanted = deployment is None or not meant_to_run(deployment) or self._outdated(deployment)
        if wanted or deployment is None or self.vault.lacks_queue():
            self._install_whole(say)
            return True
        if (deployment.get("status") or {}).get("readyReplicas"):
            return False
        self._await_rollout(_release_of(deployment), say)
        return True

    def alive(self) -> bool:
        """Whether a gateway takes requests."""
        return self.ready() > 0

    def obstacle(self) -> str:
        """Say why nobody can call an endpoint, and the way out; empty where they can."""
        deployment = self._deployment()
        if deployment is None or not meant_to_run(deployment):
            return f"there is no gateway; `mlflow-domino -t domino:/{self._declaration.name} up` starts one"
        return self._fleet.obstacle()

    def remark(self) -> str:
        """Say that the gateway is of an older release; empty otherwise."""
        deployed = self.deployed()
        if self._declaration.gateway_image or not of_older_version(deployed):
            return ""
        return f"its gateway is {deployed}; the next create or update replaces it, without a lost request"

    def ready(self) -> int:
        """Return how many pods take requests."""
        return self._fleet.ready()

    def release(self) -> str:
        """Return what this client would install: this package's release, or the image that is declared."""
        return self._declaration.gateway_image or release()

    def deployed(self) -> str:
        """Return the release that is installed, empty where none is."""
        deployment = self._deployment()
        return _release_of(deployment) if deployment is not None else ""

    def outdated(self) -> bool:
        """Whether the next `ensure` would replace what is installed."""
        return (found := self._deployment()) is not None and self._outdated(found)

    def url(self) -> str:
        """Return scheme, host and port that callers use.

        Raises
        ------
        Unavailable
            The gateway has no address.
        """
        return self._url

    @functools.cached_property
    def _url(self) -> str:
        return url_of(self._cluster, self._declaration)

    def publish(self, silent: Sequence[str] = (), *, timeout_s: float = _PUBLISH_S) -> None:
        """Have every gateway read the records as they are now; return when each has accepted them.

        Parameters
        ----------
        silent : sequence of str
            Ids of endpoints whose callers get 503 until the next `publish`, whatever their records say.

        Raises
        ------
        GatewayFailed
            One of them did not in time; with its own reason.
        """
        deployment = self._deployment()
        awaited = deployment is not None and meant_to_run(deployment)
        self._fleet.publish(silent, timeout_s=timeout_s, awaited=awaited)

    def publish_again(self) -> None:
        """Have every gateway read what is written beside the records; as `publish`, and what is silent stays so."""
        self.publish(self._fleet.silent())

    def quiet(self) -> bool:
        """Whether the last `publish` silenced an endpoint."""
        return bool(self._fleet.silent())

    def active(self, version_id: str) -> int:
        """Return how many requests are at a version's replicas, or wait for one, in all gateways."""
        return self._fleet.active(version_id)

    # ---- installation ------------------------------------------------------------------------------------------------

    def image(self, say: Say = _silently) -> str:
        """Have the gateway's image where the cluster can pull it; return its name.

        Raises
        ------
        DominoError
            As `gateway_image`.
        """
        if self._declaration.gateway_image:
            return self._declaration.gateway_image
        return gateway_image(self._home, builder_of(), self._declaration, say)

    def render(self, image: str) -> dict[str, str]:
        """Return, by name, the files with which an administrator installs the gateway; nothing is done.

        Parameters
        ----------
        image : str
            As `image` returned it, or another one's of the same content; empty for one that is still to be made.
        """
        named = image or self._declaration.gateway_image
        return gateway_files(self._place, self._declaration, named, release=self.release(), served=self._cluster.served)

    def install(self, say: Say = _silently) -> None:
        """Install the gateway, or make the one that is there what the declaration says; safe to repeat.

        Raises
        ------
        InvalidInput
            The declaration wants what the cluster does not grant, such as a node port that is taken.
        GatewayFailed
            It does not come up; with the pods' reasons. What was installed before goes on serving.
        Unavailable
            The cluster gives it no address in time.
        """
        self._check_certificate()
        image, ours = self.image(say), self.release()
        before = self._deployment()
        say(f"installing the gateway {ours} in the namespace {self._cluster.namespace!r} of {self._cluster} …")
        configuration = self.vault.put()
        wanted = gateway_manifests(self._place, self._declaration, image, release=ours, configuration=configuration)
        for manifest in wanted:
            self._apply(manifest)
        self._drop({*_OPTIONAL} - {manifest["kind"] for manifest in wanted})
        try:
            self._await_rollout(ours, say)
        except GatewayFailed:
            if before is not None and meant_to_run(before):
                self._cluster.apply(_as_written(before))
            else:
                self._cluster.delete("Deployment", GATEWAY)
            raise
        vars(self).pop("_url", None)
        self._await_address(say)

    def remove(self) -> None:
        """End the gateway, which has nothing left to do; its address and its tokens stay."""
        self._cluster.delete("Deployment", GATEWAY)
        self._drop(_OPTIONAL)
        self._cluster.delete("ConfigMap", GENERATION_MAP)
        self._await_end()

    def uninstall(self, *, force: bool = False) -> bool:
        """Remove every object of the gateway's; false where there was none.

        Parameters
        ----------
        force : bool
            Also while endpoints exist; these cannot be called until it is installed again, perhaps at another address.

        Raises
        ------
        Conflict
            Endpoints exist.
        """
        endpoints = len(self._cluster.list("ConfigMap", labels("endpoint")))
        if endpoints and not force:
            raise Conflict(
                f"The namespace {self._cluster.namespace!r} of {self._cluster} has {endpoints} endpoint"
                f"{'' if endpoints == 1 else 's'}, which nobody could call any more; delete them first, or use --force."
            )
        there = [kind for kind in _KINDS if self._cluster.get(kind, GATEWAY) is not None]
        for kind in there:
            self._cluster.delete(kind, GATEWAY)
        self._cluster.delete("Secret", GATEWAY)
        self._cluster.delete("ConfigMap", GENERATION_MAP)
        if not endpoints:
            self._cluster.delete("Secret", GATEWAY_TOKENS)
        self._await_end()
        return bool(there)

    # ---- inside ------------------------------------------------------------------------------------------------------

    @property
    def _place(self) -> Place:
        return Place(self._cluster.namespace, self._declaration.pull_secret)

    def _deployment(self) -> Manifest | None:
        return self._cluster.get("Deployment", GATEWAY)

    def _install_whole(self, say: Say) -> None:
        """Install the gateway; where there was nothing of it before, a failure leaves nothing of it."""
        anew = self._cluster.get("Service", GATEWAY) is None
        try:
            self.install(say)
        except DominoError:
            for kind in _KINDS if anew else ():
                with contextlib.suppress(DominoError):
                    self._cluster.delete(kind, GATEWAY)
            for name in (
                (GATEWAY, GATEWAY_TOKENS) if anew and not self._cluster.list("ConfigMap", labels("endpoint")) else ()
            ):
                with contextlib.suppress(DominoError):
                    self._cluster.delete("Secret", name)
            raise

    def _drop(self, kinds: Iterable[str]) -> None:
        for kind in kinds:
            with contextlib.suppress(Forbidden):  # who has no right to an Ingress has not made one
                self._cluster.delete(kind, GATEWAY)

    def _outdated(self, deployment: Manifest) -> bool:
        deployed = _release_of(deployment)
        if self._declaration.gateway_image:
            return deployed != self._declaration.gateway_image
        return older(deployed, release())

    def _apply(self, manifest: Manifest) -> None:
        try:
            self._cluster.apply(manifest)
        except InvalidInput as error:
            if manifest["kind"] == "Service" and "allocated" in str(error):
                raise InvalidInput(
                    f"The node port {self._declaration.node_port} is taken in {self._cluster}: set another `node_port` "
                    f"under [data_planes.{self._declaration.name}] in {self._home.config}, or none, and the cluster "
                    "chooses one."
                ) from error
            raise

    def _check_certificate(self) -> None:
        name = self._declaration.tls_secret
        if not name:
            return
        held = (self._cluster.get("Secret", name) or {}).get("data") or {}
        if not {"tls.crt", "tls.key"} <= held.keys():
            raise InvalidInput(
                f"There is no Secret {name!r} with tls.crt and tls.key in the namespace {self._cluster.namespace!r} of "
                f"{self._cluster}, which `tls_secret` names: `kubectl create secret tls {name} --cert=… --key=…` makes it."
            )

    def _put_tokens(self, tokens: Mapping[str, str]) -> None:
        found = self._cluster.get("Secret", GATEWAY_TOKENS)
        missing = tokens.keys() - ((found or {}).get("data") or {}).keys()
        written = {name: base64.b64encode(tokens[name].encode()).decode() for name in sorted(missing)}
        if found is None:
            meta = {"name": GATEWAY_TOKENS, "labels": labels("gateway")}
            self._cluster.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": written})
        elif written:
            self._cluster.patch("Secret", GATEWAY_TOKENS, {"data": written})

    def _await_rollout(self, ours: str, say: Say) -> None:
        """Return when all pods are of our release and take requests."""
        deadline, told = time.monotonic() + _ROLLOUT_S, time.monotonic()
        while True:
            deployment = self._deployment()
            if deployment is None:
                raise NotFound("Somebody removed the gateway while it was being installed.")
            if rolled_out(deployment):
                return
            trouble = self._fleet.trouble(ours) or unmade(deployment)
            if trouble or time.monotonic() > deadline:
                reason = trouble or self._fleet.state(ours) or f"it was not ready within {_ROLLOUT_S:g} s"
                raise GatewayFailed(
                    f"The gateway does not come up in the namespace {self._cluster.namespace!r} of {self._cluster}: {reason}",
                    log_tail=self._fleet.log_tail(ours),
                )
            if time.monotonic() - told > _TELL_S:
                told = time.monotonic()
                say(f"waiting for the gateway's pods … {self._fleet.state(ours)}".rstrip())
            time.sleep(_LOOK_S)

    def _await_address(self, say: Say) -> None:
        deadline, told = time.monotonic() + _ADDRESS_S, time.monotonic()
        while True:
            try:
                reason = unanswered(self.url(), _ANSWER_S)
                say(f"the gateway is at {self.url()}{f'; from here it cannot be reached: {reason}' if reason else ''}")
                return
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
            if time.monotonic() - told > _TELL_S:
                told = time.monotonic()
                say("waiting for the cluster to give the gateway an address …")
            time.sleep(_LOOK_S)

    def _await_end(self) -> None:
        """Have the pods end, which need not be left alone with callers that keep a connection, and wait for that.

        The cluster itself may keep what is left of a pod for a minute.
        """
        vars(self).pop("_url", None)
        with contextlib.suppress(DominoError):  # it would only be sooner: the cluster ends them
            for one in self._cluster.list("ReplicaSet", labels("gateway")):
                self._cluster.delete("ReplicaSet", one["metadata"]["name"])  # or it would make others in their place
        for pod in self._cluster.list("Pod", labels("gateway")):
            self._cluster.delete("Pod", pod["metadata"]["name"], grace_s=_LAST_S)
        deadline = time.monotonic() + _END_S
        while any(map(runs, self._cluster.list("Pod", labels("gateway")))) and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
        for lease in self._cluster.list("Lease", labels("gateway")):  # the cluster would do it, a little later
            self._cluster.delete("Lease", lease["metadata"]["name"])


def _release_of(deployment: Manifest) -> str:
    return str((deployment["metadata"].get("annotations") or {}).get(RELEASE, ""))


def _as_written(manifest: Manifest) -> Manifest:
    """Return an object as whoever wrote it did, without what the server added."""
    meta = {k: v for k, v in manifest["metadata"].items() if k in ("name", "namespace", "labels", "annotations")}
    return {**{k: v for k, v in manifest.items() if k not in ("status", "metadata")}, "metadata": meta}
