"""Names, labels and annotations of our objects in a Kubernetes cluster: what client, records and gateway agree on."""

from __future__ import annotations

from mlflow_domino.errors import InvalidInput
from mlflow_domino.models import valid_id

__all__ = [
    "CONFIGURATION",
    "CONTENT",
    "ENDPOINT",
    "ENDPOINT_NAME",
    "GATEWAY",
    "GATEWAY_TOKENS",
    "GENERATION",
    "GENERATION_MAP",
    "KIND",
    "MANAGED",
    "PROBLEM",
    "RELEASE",
    "TOKENS",
    "VERSION",
    "digests_key",
    "labels",
    "lease_name",
    "model_name",
    "tokens_name",
    "variables_name",
]

_MANAGED_BY, _MANAGER = "app.kubernetes.io/managed-by", "mlflow-domino"
#: Selects everything that is ours.
MANAGED = f"{_MANAGED_BY}={_MANAGER}"

# Labels.
KIND = "mlflow-domino/kind"
ENDPOINT = "mlflow-domino/endpoint"
VERSION = "mlflow-domino/version"

# Annotations: names of endpoints may be longer than a label.
ENDPOINT_NAME = "mlflow-domino/endpoint-name"
#: Hash of an object as it was written.
CONTENT = "mlflow-domino/content"
#: Hash of what a pod reads when it starts.
CONFIGURATION = "mlflow-domino/configuration"
#: Changed so that the kubelet looks at once, and hands a new tokens.json on.
TOKENS = "mlflow-domino/tokens"
GENERATION = "mlflow-domino/generation"
RELEASE = "mlflow-domino/release"
#: Why a gateway has accepted nothing newer; empty where there is nothing to say.
PROBLEM = "mlflow-domino/problem"

#: Name of the ConfigMap that is written after the records, with the number of the change.
GENERATION_MAP = "mlflow-domino-generation"
#: Name of the gateway's Deployment, Service, ServiceAccount, Role, RoleBinding, Ingress, and of the Secret with the
#: file ``management-token``.
GATEWAY = "mlflow-domino-gateway"
#: Name of the Secret with the gateway's own token for each endpoint, by the endpoint's id, and with the digests of the
#: tokens of asynchronous endpoints' callers.
GATEWAY_TOKENS = "mlflow-domino-gateway-tokens"


def labels(kind: str, *, endpoint: str = "", version: str = "") -> dict[str, str]:
    """Return the labels of an object of ours.

    Parameters
    ----------
    kind : str
        Such as ``model`` or ``tokens``.
    endpoint, version : str
        Ids of what it belongs to; empty where it belongs to none.

    Raises
    ------
    InvalidInput
        When an id is none.
    """
    found = {_MANAGED_BY: _MANAGER, KIND: kind}
    if endpoint:
        found[ENDPOINT] = _checked(endpoint)
    if version:
        found[VERSION] = _checked(version)
    return found


def lease_name(pod: str) -> str:
    """Return the name of the Lease of a pod of the gateway's."""
    return f"gateway-{pod}"


def model_name(version_id: str) -> str:
    """Return the name of a version's Deployment, Service, PodDisruptionBudget and ConfigMap."""
    return f"model-{_checked(version_id)}"


def variables_name(version_id: str) -> str:
    """Return the name of the Secret with a version's variables."""
    return f"version-{_checked(version_id)}-variables"


def digests_key(endpoint_id: str) -> str:
    """Return the key, in the Secret of the gateway's tokens, of the digests of the tokens of an endpoint's callers."""
    return f"{_checked(endpoint_id)}.json"


def tokens_name(endpoint_id: str) -> str:
    """Return the name of the Secret with the digests of an endpoint's tokens."""
    return f"endpoint-{_checked(endpoint_id)}-tokens"


def _checked(identifier: str) -> str:
    if not valid_id(identifier):
        raise InvalidInput(f"{identifier[:60]!r} is no id: 24 hexadecimal digits are wanted.")
    return identifier
