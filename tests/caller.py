"""Callers of asynchronous endpoints: Domino's published client, and one that goes on whatever happens to the gateway."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import urllib.parse
import uuid
from pathlib import Path
from typing import Any

import requests

from mlflow_domino.views import EndpointView
from tests.conftest import eventually

_CLIENT = Path(__file__).resolve().parent / "clients" / "domino_async.py"

#: A project that says how far it is, sleeps and fails as it is asked to; `VERSION` is to be set.
MODEL = """
import logging, time
progress = logging.getLogger("domino.progress")
def predict(x=0, s=0, fail="", **more):
    progress.info("x is %s", x, extra={"fraction": 0.5})
    time.sleep(s)
    if fail:
        raise RuntimeError("a secret of the model's")
    return {"version": VERSION, "x": x, **more}
"""


class Caller:
    """Submits and polls, with a token; connections that break and answers of 5xx are tried again.

    Parameters
    ----------
    url : str
        Where the endpoint takes predictions.
    token : str
    """

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self.headers = {"Authorization": f"Bearer {token}"}

    def submit(self, *, within: float = 120, **parameters: Any) -> str:
        """Return the id of a prediction that was accepted, once."""
        headers = {**self.headers, "Idempotency-Key": uuid.uuid4().hex}
        answer = self._call("POST", "", within, headers=headers, json={"parameters": parameters})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["asyncPredictionId"])

    def poll(self, prediction_id: str, *, details: bool = False) -> dict[str, Any]:
        """Return a prediction as it is now; its status is that of HTTP where there is none."""
        answer = self._call("GET", f"/{prediction_id}{'?details=true' if details else ''}", 60, headers=self.headers)
        document: dict[str, Any] = answer.json() if answer.ok else {"status": answer.status_code}
        return document

    def ended(self, prediction_id: str, *, within: float = 60) -> dict[str, Any]:
        """Return a prediction once it has ended."""
        found: dict[str, Any] = {}

        def look() -> bool:
            found.clear()
            found.update(self.poll(prediction_id))
            return found["status"] in ("succeeded", "failed")

        eventually(look, within=within, every=0.1)
        return found

    def begun(self, prediction_id: str, *, within: float = 60) -> None:
        """Wait until the model says that it is at a prediction; one that has only been leased may still be given back."""
        eventually(lambda: self.poll(prediction_id, details=True)["progress"], within=within)

    def _call(self, method: str, path: str, within: float, **options: Any) -> requests.Response:
        deadline = time.monotonic() + within
        while True:
            try:
                answer = requests.request(method, self.url + path, timeout=30, **options)
                if answer.status_code < 500 or time.monotonic() > deadline:
                    return answer
            except requests.RequestException:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.1)


def published_client(folder: Path, view: EndpointView, token: str, parameters: dict[str, Any]) -> Path:
    """Return Domino's published client with its four constants edited, as it says."""
    url = urllib.parse.urlsplit(view.url)
    values = {
        "REQUEST_PARAMETERS": parameters, "DOMINO_URL": f"{url.scheme}://{url.netloc}", "MODEL_ID": view.endpoint.id,
        "MODEL_ACCESS_TOKEN": token,
    }  # fmt: skip
    text = _CLIENT.read_text()
    for name, value in values.items():
        pattern = rf"^{name} = (\{{.*?^\}}|\".*?\")$"
        edited = f"{name} = {value!r}".replace("\\", "\\\\")
        text, edits = re.subn(pattern, edited, text, flags=re.DOTALL | re.MULTILINE)
        assert edits == 1
    path = folder / "client.py"
    path.write_text(text)
    return path


def run_client(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=180, check=False)
