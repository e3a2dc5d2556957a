"""What `examples/` shows works as it is written there."""

from __future__ import annotations

from pathlib import Path

import requests

from tests.conftest import eventually
from tests.deployment import Deployment

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_a_table_is_scored_by_reference(deployment: Deployment, tmp_path: Path) -> None:
    project = str(EXAMPLES / "by_reference")
    view = deployment.create("scoring", project, file="score.py", function="score", environment="pandas", is_async=True)
    (tmp_path / "in.csv").write_text("width,height\n2,3\n4,5\n")
    urls = {"input_url": (tmp_path / "in.csv").as_uri(), "output_url": str(tmp_path / "out.csv")}
    bearer = {"Authorization": f"Bearer {deployment.token}"}
    made = requests.post(view.url, json={"parameters": urls}, headers=bearer, timeout=30).json()

    def told() -> dict[str, object]:
        found: dict[str, object] = requests.get(
            f"{view.url}/{made['asyncPredictionId']}", headers=bearer, timeout=30
        ).json()
        return found

    eventually(lambda: told()["status"] != "queued", within=60)
    assert told()["result"] == {"output_url": urls["output_url"], "rows": 2}
    assert (tmp_path / "out.csv").read_text() == "width,height,area\n2,3,6\n4,5,20\n"
