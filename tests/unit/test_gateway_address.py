"""Where callers find a cluster's gateway."""

from __future__ import annotations

from typing import Any

import pytest

from mlflow_domino.data_planes.address import node_host, unanswered


def node(name: str, *addresses: tuple[str, str], ready: str = "True") -> dict[str, Any]:
    return {
        "metadata": {"name": name},
        "status": {
            "conditions": [{"type": "Ready", "status": ready}],
            "addresses": [{"type": kind, "address": address} for kind, address in addresses],
        },
    }


INSIDE, OUTSIDE = ("InternalIP", "10.0.0.1"), ("ExternalIP", "198.51.100.1")


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ([], ""),
        ([node("a", ("Hostname", "a"))], ""),
        ([node("a", INSIDE)], "10.0.0.1"),
        ([node("a", INSIDE, OUTSIDE)], "198.51.100.1"),
        ([node("b", ("InternalIP", "10.0.0.2")), node("a", INSIDE)], "10.0.0.1"),
        ([node("a", OUTSIDE, ready="Unknown"), node("b", ("InternalIP", "10.0.0.2"))], "10.0.0.2"),
    ],
)
def test_a_node_port_is_called_at_a_node_that_is_there_best_one_that_is_known_outside(
    nodes: list[dict[str, Any]], host: str
) -> None:
    assert node_host(nodes) == host


def test_whoever_does_not_answer_is_told_with_the_reason() -> None:
    assert "refused" in unanswered("http://127.0.0.1:9", 0.1)
