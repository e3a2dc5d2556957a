"""What tests do with endpoints: make projects, deploy them, call them."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import requests

from mlflow_domino.controller import Controller
from mlflow_domino.errors import DominoError
from mlflow_domino.home import Home
from mlflow_domino.views import EndpointView

ECHO = """
import os
STARTED = os.getpid()
def predict(x=0, **more):
    return VALUE
"""


class Deployment:
    """Verbs with the arguments that tests vary, on one home.

    Parameters
    ----------
    home : Home
    target : str
        The data plane's URI.
    """

    def __init__(self, home: Home, target: str = "domino") -> None:
        self.home = home
        self.target = target
        self.said: list[str] = []
        self.token = ""
        self._made: list[str] = []

    @property
    def controller(self) -> Controller:
        return Controller.open(self.target, home=self.home, say=self.said.append)

    def project(self, folder: Path, code: str, **values: Any) -> str:
        """Write a project of one file, `model.py`; `values` become names in it."""
        folder.mkdir(parents=True, exist_ok=True)
        heading = "".join(f"{name} = {value!r}\n" for name, value in values.items())
        (folder / "model.py").write_text(heading + textwrap.dedent(code))
        return str(folder)

    def create(self, name: str, model_uri: str, **config: Any) -> EndpointView:
        self._made.append(name)
        view, self.token = self.controller.create(name, model_uri, _defaults(model_uri, config))
        return view

    def update(self, name: str, model_uri: str | None = None, **config: Any) -> EndpointView:
        return self.controller.update(name, model_uri, _defaults(model_uri, config))

    def call(self, view: EndpointView, body: Any, *, route: str = "latest/model", **options: Any) -> requests.Response:
        url = view.url.removesuffix("latest/model") + route
        auth = options.pop("auth", (self.token, self.token))
        return requests.post(url, json=body, auth=auth, timeout=60, **options)

    def clean(self) -> None:
        for name in self._made:
            try:
                self.controller.delete(name)
            except DominoError as error:
                raise AssertionError(f"{name} could not be deleted: {error}") from error


def _defaults(model_uri: str | None, config: dict[str, Any]) -> dict[str, Any]:
    if model_uri is not None and Path(model_uri, "model.py").exists():
        return {"file": "model.py", **config}
    return config
