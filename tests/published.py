"""Records of an endpoint as they would be after a publication, for tests of what is made out of them."""

from __future__ import annotations

from typing import Any

from mlflow_domino.config import parse
from mlflow_domino.data_planes.declaration import Declaration
from mlflow_domino.data_planes.installation import gateway_manifests
from mlflow_domino.data_planes.manifests import Place, model_manifests
from mlflow_domino.data_planes.tier import Tier
from mlflow_domino.dialect import Manifest
from mlflow_domino.models import Endpoint, FileSource, RegistrySource, Target, Version

IMAGE = "registry.example.com/models/endpoint:0123456789abcdef"
ENDPOINT = Endpoint("e" * 24, "iris of the long and ünusual name " + "x" * 60, "kubernetes", 0)

#: Settings, tiers and declarations that each bring something of their own into the objects.
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "replicas": {"replicas": 3, "strictNodeAntiAffinity": True},
    "health": {"healthCheck": {"initialDelaySeconds": 20, "periodSeconds": 3, "timeoutSeconds": 2, "failureThreshold": 9}},
    "limits": {"overrideRequestTimeoutSecs": 0.5, "start_timeout_s": 1, "initial_delay_s": 86400},
    "longest": {"request_timeout_s": 86400, "start_timeout_s": 86400, "health_period_s": 3600, "failure_threshold": 1000},
    "volumes": {"volumes": [{"name": "data", "mountPath": "/data", "path": "/srv/data"},
                            {"name": "out", "mountPath": "/out dir", "path": "/srv/ö", "readOnly": False}]},
    "async": {"is_async": True, "async_timeout_s": 100},
    "root": {"read_only_root": True, "username": "ann.b-c_d", "project": "p.q"},
}  # fmt: skip
TIERS: dict[str, Tier] = {
    "none": Tier(),
    "small": Tier(cores=0.25, memory=128 << 20),
    "gpu": Tier(cores=3.5, memory=16 << 30, gpus=2, gpu_key="amd.com/gpu", node_selector={"pool": "gpu"}),
    "spot": Tier(
        spot=True, tolerations=({"key": "x", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 9},)
    ),
}
DECLARATIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "nodeport": {"node_port": 30123, "gateway_replicas": 2, "tls_secret": "tls"},
    "loadbalancer": {"expose": "loadbalancer", "port": 8443, "pull_secret": "pull"},
    "ingress": {
        "expose": "ingress",
        "ingress_host": "models.example.com",
        "ingress_class": "nginx",
        "tls_secret": "tls",
    },
    "ingress without a name": {"expose": "ingress"},
}


def published(*, registry: bool = False, **config: Any) -> Version:
    """Return a version that is to run."""
    settings = parse(config)[0]
    source = (
        RegistrySource("models:/iris/1", "models:/iris/1", "d")
        if registry
        else FileSource("/p", "f.py", "predict", "d")
    )
    return Version("0123456789abcdef01234567", ENDPOINT.id, 7, 0, source, settings, target=Target.RUNNING, replicas=settings.replicas)  # fmt: skip


def objects(
    version: Version, tier: Tier | None = None, *, place: Place | None = None, image: str = IMAGE, variables: Any = ()
) -> dict[str, Manifest]:
    """Return the objects of a version by their kinds."""
    found = model_manifests(place or Place("models"), ENDPOINT, version, image, tier or Tier(), variables=variables)
    return {one["kind"]: one for one in found}


def gateway_objects(*, place: Place | None = None, release: str = "1.0", **declared: Any) -> dict[str, Manifest]:
    """Return the objects of a gateway by their kinds."""
    declaration = Declaration("prod", kind="kubernetes", **{"port": 80, **declared})
    place = place or Place("models", declaration.pull_secret)
    return {one["kind"]: one for one in gateway_manifests(place, declaration, IMAGE, release=release)}
