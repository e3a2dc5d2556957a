from __future__ import annotations

from pathlib import Path

import pytest

from mlflow_domino.config import parse
from mlflow_domino.data_planes.declaration import Declaration
from mlflow_domino.data_planes.tier import Tier, tier_named, unenforced
from mlflow_domino.errors import DominoError, InvalidInput, NotFound
from mlflow_domino.home import Home


def tier(tmp_path: Path, lines: str, *, plane: str = "") -> Tier:
    (tmp_path / "config.toml").write_text(f"[hardware_tiers.t]\n{lines}\n")
    return tier_named("t", Home(tmp_path), plane=plane)


def test_a_tier_says_how_much_of_which_machines_a_replica_gets(tmp_path: Path) -> None:
    found = tier(
        tmp_path,
        """
        cores = 1.5
        memory = "2Gi"
        gpus = 1
        gpu_key = "amd.com/gpu"
        node_selector = { pool = "gpu", "topology.kubernetes.io/zone" = "eu-1a" }
        tolerations = [{ key = "gpu", operator = "Exists", effect = "NoExecute", toleration_seconds = 30 }]
        """,
    )
    assert found == Tier(
        cores=1.5,
        memory=2 << 30,
        gpus=1,
        gpu_key="amd.com/gpu",
        node_selector={"pool": "gpu", "topology.kubernetes.io/zone": "eu-1a"},
        tolerations=({"key": "gpu", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30},),
    )
    assert tier_named("", Home(tmp_path)) == Tier()


def test_a_spot_tier_puts_up_with_what_clouds_mark_their_spot_machines_with(tmp_path: Path) -> None:
    found = tier(tmp_path, 'spot = true\ntolerations = [{ key = "mine", operator = "Exists" }]')
    keys = {toleration["key"] for toleration in found.all_tolerations}
    assert {"mine", "cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority"} < keys
    assert tier(tmp_path, "").all_tolerations == ()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("core = 1", "unknown key 'core'"),
        ('memory = "much"', "a size is wanted"),
        ('gpu_key = "gpu"', "a name such as nvidia.com/gpu"),
        ('node_selector = "gpu"', "labels such as"),
        ('node_selector = { pool = "a b" }', "is no label of a node"),
        ('node_selector = { "a b" = "x" }', "is no label of a node"),
        ("node_selector = { pool = 7 }", "is no label of a node"),
        ('tolerations = "gpu"', "a list such as"),
        ('tolerations = [{ name = "gpu" }]', "a toleration has the keys"),
        ('tolerations = [{ key = "gpu", effect = "Never" }]', "effect = 'Never'"),
        ('tolerations = [{ key = "gpu", operator = "Exists", value = "x" }]', "has no value"),
        ('tolerations = [{ effect = "NoSchedule" }]', "has the operator Exists"),
        ('tolerations = [{ key = "gpu", tolerationSeconds = 7 }]', "has the effect NoExecute"),
        ("spot_notice_s = 1", "from 5 to 3600"),
    ],
)
def test_a_wrong_tier_is_refused_with_what_is_wanted(tmp_path: Path, lines: str, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        tier(tmp_path, lines)
    assert message in str(caught.value)
    assert "[hardware_tiers.t]" in str(caught.value)


def test_a_tier_of_another_data_plane_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DominoError, match="domino:/prod-eu"):
        tier(tmp_path, 'data_plane = "prod-eu"', plane="docker")
    assert tier(tmp_path, 'data_plane = "prod-eu"', plane="prod-eu").data_plane == "prod-eu"
    with pytest.raises(NotFound, match="there are: t"):
        tier_named("u", Home(tmp_path))


def test_what_a_data_plane_cannot_enforce_is_known(tmp_path: Path) -> None:
    found = tier(tmp_path, 'cores = 1\nspot = true\nnode_selector = { pool = "gpu" }')
    assert found.unenforced("kubernetes") == ()
    assert found.unenforced("docker") == ("node_selector", "spot")
    assert found.unenforced("local") == ("cores", "node_selector", "spot")


@pytest.mark.parametrize(
    ("kind", "config", "notes"),
    [
        ("local", {}, ()),
        ("local", {"hardware_tier": "t"}, ("hardware_tier=t limits nothing here: replicas share this machine",)),
        ("docker", {"hardware_tier": "t"}, ("hardware_tier=t: nothing here enforces spot",)),
        ("kubernetes", {"hardware_tier": "t", "health_period_s": 5}, ()),
        (
            "docker",
            {"healthCheck": {"periodSeconds": 5}, "strict_node_anti_affinity": True},
            ("health_period_s, strict_node_anti_affinity: for Kubernetes only; here replicas look after themselves",),
        ),
        (
            "local",
            {"volumes": [{"name": n, "mountPath": m, "path": "/srv"} for n, m in (("a", "/data"), ("b", "/srv"))]},
            ("volumes: nothing is mounted here, where /data is /srv itself",),
        ),
    ],
)
def test_what_a_data_plane_does_nothing_about_is_said(
    tmp_path: Path, kind: str, config: dict[str, object], notes: tuple[str, ...]
) -> None:
    (tmp_path / "config.toml").write_text("[hardware_tiers.t]\ncores = 1\nspot = true\n")
    assert unenforced(parse(config)[0], Home(tmp_path), Declaration(kind, kind)) == notes
