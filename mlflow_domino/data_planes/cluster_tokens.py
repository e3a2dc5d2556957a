"""Tokens of endpoints in a cluster: where pods read their digests, and where gateways do.

Pods mount one Secret for each endpoint. Gateways read one Secret for all: their own token for each endpoint, and for
asynchronous ones, whose callers come to them, the digests too.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mlflow_domino import secret
from mlflow_domino.cluster import Cluster
from mlflow_domino.cluster_records import KubernetesRecords
from mlflow_domino.data_planes import manifests, pods
from mlflow_domino.data_planes.base import Log
from mlflow_domino.data_planes.entrance import Entrance
from mlflow_domino.data_planes.supervisor import wait_until
from mlflow_domino.errors import GatewayFailed, NotFound, Unavailable
from mlflow_domino.labels import GATEWAY_TOKENS, TOKENS, digests_key, labels, tokens_name
from mlflow_domino.models import Endpoint, Target, Token, Version, World, new_id

__all__ = ["ClusterTokens"]

#: A node looks after a pod by itself every minute or so; then it has missed nothing.
_ACKNOWLEDGE_S = 100.0
_NUDGE_S = 2.0
_LOOK_S = 0.05
_FILE = "tokens.json"


class ClusterTokens:
    """Writes tokens, and knows who has taken them.

    Parameters
    ----------
    cluster : Cluster
    records : KubernetesRecords
    entrance : Entrance
    """

    def __init__(self, cluster: Cluster, records: KubernetesRecords, entrance: Entrance) -> None:
        self._cluster = cluster
        self._records = records
        self._entrance = entrance

    def put(self, endpoint: Endpoint, tokens: Sequence[Token], versions: Sequence[Version], say: Log) -> None:
        """Make exactly `tokens`, and the gateway's own, valid; as `DataPlane.put_tokens`."""
        content = self._write(endpoint, tokens)
        wanted = hashlib.sha256(content.encode()).hexdigest()
        serving = [version for version in versions if version.target is Target.RUNNING]
        waiting, _ = self._pods(serving)
        self._nudge(waiting)
        if endpoint.settings.is_async:
            self._tell_gateways(endpoint, content)
        taken: set[str] = set()

        def all_taken() -> bool:
            taken.update(pod for pod in waiting - taken if not self._reason(pod, wanted))
            return waiting <= taken

        deadline, said = time.monotonic() + _ACKNOWLEDGE_S, False
        while not wait_until(all_taken, _NUDGE_S, every_s=_LOOK_S):
            with contextlib.suppress(Unavailable):  # as in `_reason`
                # One that leaves is handed nothing any more, and others come in its place.
                ready, alive = self._pods(serving)
                waiting = ready | (waiting & alive)
                self._nudge(waiting - taken)
            late = sorted(waiting - taken)
            if late and not said:
                said = True
                say(f"waiting for {', '.join(late)} to take the change of tokens …")
            if late and time.monotonic() > deadline:
                told = "; ".join(f"{pod} {self._reason(pod, wanted) or 'has taken it only now'}" for pod in late)
                raise Unavailable(
                    f"Not every replica of {endpoint.name!r} took the change of tokens within {_ACKNOWLEDGE_S:g} s: {told}. "
                    "Each takes it when its node hands it on; do it again to be told when all have."
                )

    def ensure(self, endpoint: Endpoint, version: Version) -> None:
        """Have the file of tokens be there, without which pods do not start, and what gateways need beside."""
        if self._is_there(endpoint, version):
            return
        # Whoever makes or revokes a token at this moment has a list that is newer than what we read.
        with self._records.lock(f"tokens-{endpoint.id}"):
            found = self._read(tokens_name(endpoint.id)).get(_FILE)
            content = found or self._write(endpoint, self._records.tokens(endpoint.id))
            if version.settings.is_async and digests_key(endpoint.id) not in self._read(GATEWAY_TOKENS):
                self._put(GATEWAY_TOKENS, labels("gateway"), {digests_key(endpoint.id): content})

    def forget(self, endpoint: Endpoint) -> None:
        """Take away what gateways have of an endpoint."""
        with contextlib.suppress(NotFound):
            gone = (endpoint.id, digests_key(endpoint.id))
            self._cluster.patch("Secret", GATEWAY_TOKENS, {"data": dict.fromkeys(gone)})

    def own(self, endpoint: Endpoint) -> str:
        """Return the gateway's own token for the endpoint, made when it is first needed."""
        known = self._read(GATEWAY_TOKENS).get(endpoint.id)
        if known:
            return known
        token = secret.new_token()
        self._put(GATEWAY_TOKENS, labels("gateway"), {endpoint.id: token})
        return token

    def all_own(self, world: World) -> dict[str, str]:
        """Return the gateway's own token for each endpoint, by the endpoint's id."""
        return {endpoint.id: self.own(endpoint) for endpoint in world.endpoints}

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _is_there(self, endpoint: Endpoint, version: Version) -> bool:
        return _FILE in self._read(tokens_name(endpoint.id)) and (
            not version.settings.is_async or digests_key(endpoint.id) in self._read(GATEWAY_TOKENS)
        )

    def _nudge(self, names: Iterable[str]) -> None:
        """Have kubelets look after pods now, not within a minute or so.

        A kubelet may hear of the pod before it hears of the Secret, and then hands on what it had.
        """
        for name in names:
            with contextlib.suppress(NotFound):
                self._cluster.patch("Pod", name, {"metadata": {"annotations": {TOKENS: new_id()}}})

    def _write(self, endpoint: Endpoint, tokens: Sequence[Token]) -> str:
        """Write what pods read, and return it."""
        name, own = tokens_name(endpoint.id), secret.digest(self.own(endpoint))
        valid = [{"id": t.id, "sha256": t.sha256} for t in tokens]
        content = json.dumps({"tokens": [*valid, {"id": "gateway", "sha256": own}]}, indent=1, sort_keys=True) + "\n"
        self._put(name, labels("tokens", endpoint=endpoint.id), {_FILE: content})
        return content

    def _tell_gateways(self, endpoint: Endpoint, content: str) -> None:
        """Return when every gateway knows the tokens of an asynchronous endpoint's callers."""
        self._put(GATEWAY_TOKENS, labels("gateway"), {digests_key(endpoint.id): content})
        try:
            with self._records.lock("records"):
                self._entrance.publish_again()
        except GatewayFailed as error:
            raise Unavailable(f"Not every gateway took the change of tokens: {error.message}") from error

    def _pods(self, versions: Sequence[Version]) -> tuple[set[str], set[str]]:
        """Return the names of the pods that answer, and of all that are meant to."""
        found = [pod for version in versions for pod in self._cluster.list("Pod", labels("model", version=version.id))]
        return _names(pods.ready(found)), _names(pods.alive(found))

    def _reason(self, pod: str, wanted: str) -> str:
        """Say why a pod does not use these tokens; empty where it does, or has ended."""
        try:
            _status, headers, _body = self._cluster.proxy(pod, manifests.PROBE_PORT, "/ready")
        except NotFound:
            return ""  # its successor reads them when it starts
        except Unavailable:
            return "does not answer"
        used = {k.lower(): v for k, v in headers.items()}.get("x-domino-tokens")
        return "" if used == wanted else "uses those of before" if used else "has workers that differ"

    def _read(self, name: str) -> dict[str, str]:
        found = (self._cluster.get("Secret", name) or {}).get("data") or {}
        return {key: base64.b64decode(value).decode("utf-8") for key, value in found.items()}

    def _put(self, name: str, own: Mapping[str, str], content: Mapping[str, str]) -> None:
        """Set some keys of a Secret, which is made where there is none; its other keys stay."""
        try:
            self._cluster.patch("Secret", name, {"stringData": dict(content)})
        except NotFound:
            meta = {"name": name, "namespace": self._cluster.namespace, "labels": dict(own)}
            self._cluster.apply(
                {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "type": "Opaque", "stringData": dict(content)}
            )


def _names(found: Iterable[Mapping[str, Any]]) -> set[str]:
    return {str(pod["metadata"]["name"]) for pod in found}
