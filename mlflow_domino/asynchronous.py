"""Calls of an asynchronous endpoint: submit and wait, list, show, cancel, run again."""

from __future__ import annotations

import contextlib
import time
import urllib.parse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mlflow_domino.errors import DominoError, Failed, InvalidInput, NotFound, Unavailable
from mlflow_domino.home import Home
from mlflow_domino.invocation import send, token_for

if TYPE_CHECKING:
    from mlflow_domino.controller import Controller
    from mlflow_domino.views import EndpointView

__all__ = ["PredictionFailed", "Predictions", "administered", "depth_of", "parameters_of"]

_TIMEOUT_S = 70.0
_ASK_S = 5.0
#: What one call waits for an answer; the gateway's own limit is near.
_WAIT_S = 30
_PAUSE_S = 2.0


class PredictionFailed(Failed):
    """A prediction ended without a result; in the endpoint's own words."""


class Predictions:
    """The predictions of one endpoint, with a caller's token.

    Parameters
    ----------
    home : Home
        Has the token of whoever created the endpoint.
    view : EndpointView
    token : str or None
        Another token than that.

    Raises
    ------
    InvalidInput
        The endpoint is synchronous.
    """

    def __init__(self, home: Home, view: EndpointView, *, token: str | None = None) -> None:
        if not view.endpoint.settings.is_async:
            raise InvalidInput(f"Endpoint {view.endpoint.name!r} is synchronous: it has no queue of predictions.")
        self._url = view.url
        self._name = view.endpoint.name
        self._token = token or token_for(home, view)

    def run(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Submit a prediction, and wait for its answer, for as long as that takes.

        Raises
        ------
        PredictionFailed
            With the endpoint's own words.
        """
        accepted = self._call("POST", "", body=parameters_of(body), headers={"Prefer": f"wait={_WAIT_S}"})
        prediction_id = accepted["asyncPredictionId"]
        while accepted.get("status", "queued") == "queued":
            try:
                accepted = self._call("GET", f"/{prediction_id}", headers={"Prefer": f"wait={_WAIT_S}"})
            except DominoError as error:
                if error.exit_code != Unavailable.exit_code:
                    raise
                time.sleep(_PAUSE_S)  # the gateway is being restarted: what it accepted is on its disk
        if accepted["status"] != "succeeded":
            raise PredictionFailed(
                f"Prediction {prediction_id} of {self._name!r} failed: {'; '.join(accepted['errors'])}"
            )
        return {"predictions": accepted["result"], "asyncPredictionId": prediction_id}

    def list(self, *, status: str = "", limit: int = 100, before: str = "") -> dict[str, Any]:
        """Return a page of predictions, newest first, and the id to go on before."""
        given = {"status": status, "limit": str(limit), "before": before}
        return self._call("GET", "?" + urllib.parse.urlencode({key: value for key, value in given.items() if value}))

    def show(self, prediction_id: str) -> dict[str, Any]:
        """Return everything about a prediction."""
        return self._call("GET", f"{_path(prediction_id)}?details=true")

    def cancel(self, prediction_id: str) -> dict[str, Any]:
        """Cancel a prediction; one that runs is stopped, or refused with the reason."""
        return self._call("DELETE", _path(prediction_id))

    def retry(self, prediction_id: str) -> dict[str, Any]:
        """Run a failed prediction again."""
        return self._call("POST", f"{_path(prediction_id)}/retry")

    def depth(self) -> dict[str, Any]:
        """Return how much waits and runs, and since when; and what became of all before, by its counters."""
        document = self._call("GET", "?depth=true&limit=1", timeout_s=_ASK_S)
        return {**document["depth"], **document.get("counts", {})}

    def _call(self, method: str, path: str, *, timeout_s: float = _TIMEOUT_S, **more: Any) -> dict[str, Any]:
        return send(method, self._url + path, self._token, timeout_s=timeout_s, **more)


def _path(prediction_id: str) -> str:
    """Return where a prediction is; what is no id leads nowhere else."""
    return f"/{urllib.parse.quote(prediction_id, safe='')}"


def administered(controller: Controller, view: EndpointView) -> Predictions:
    """Return the predictions of an endpoint to whoever looks after it: with a caller's token, or else the gateway's own."""
    try:
        token = token_for(controller.home, view)
    except NotFound:
        token = controller.plane.own_token(view.endpoint)
    return Predictions(controller.home, view, token=token)


def depth_of(controller: Controller, view: EndpointView) -> dict[str, Any] | None:
    """Return how much of an asynchronous endpoint waits and runs; None where that cannot be told now."""
    if not view.endpoint.settings.is_async:
        return None
    with contextlib.suppress(DominoError, KeyError):  # a gateway of another release may tell less
        return Predictions(controller.home, view, token=controller.plane.own_token(view.endpoint)).depth()
    return None


def parameters_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of an asynchronous request that means the same as one of a synchronous one.

    Raises
    ------
    InvalidInput
        There is none.
    """
    if set(body) & {"parameters", "data"}:
        return dict(body)
    split = body.get("dataframe_split")
    if isinstance(split, Mapping) and set(body) == {"dataframe_split"}:
        columns, rows = split.get("columns"), split.get("data")
        if isinstance(columns, list) and isinstance(rows, list) and rows:
            values = {str(name): [row[n] for row in rows] for n, name in enumerate(columns)}
            return {"parameters": {name: many[0] for name, many in values.items()} if len(rows) == 1 else values}
    raise InvalidInput(
        'predict: an asynchronous endpoint takes {"parameters": {name: value}}, or a DataFrame; other inputs are for '
        "synchronous ones."
    )
