"""Calls of an endpoint from Python: bodies, tokens, answers."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_domino import secret
from mlflow_domino.errors import DominoError, InvalidInput, NotFound, Unavailable
from mlflow_domino.home import Home, read_json
from mlflow_domino.models import FileSource

if TYPE_CHECKING:
    from mlflow_domino.views import EndpointView

__all__ = ["body_of", "call", "example", "refused", "send", "token_for"]

_CONNECT_S = 10.0

_SCORING = ("dataframe_split", "dataframe_records", "instances", "inputs")
_CODES = {400: "INVALID_PARAMETER_VALUE", 401: "UNAUTHENTICATED", 404: "RESOURCE_DOES_NOT_EXIST",
          413: "INVALID_PARAMETER_VALUE", 429: "REQUEST_LIMIT_EXCEEDED", 503: "TEMPORARILY_UNAVAILABLE",
          504: "DEADLINE_EXCEEDED"}  # fmt: skip


class _Answered(DominoError):
    """The endpoint answered with an error; its words and MLflow's code for its status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.code = _CODES.get(status, "INTERNAL_ERROR")
        refused = 3 if status == 404 else 2
        self.exit_code = 5 if status in (429, 502, 503, 504) else refused if 400 <= status < 500 else 1


def body_of(inputs: Any) -> dict[str, Any]:
    """Return the JSON body that `inputs` means.

    MLflow's CLI reads every file with ``pandas.read_json``, which turns Domino's and MLflow's own bodies into frames
    of a known, odd shape (a column ``data`` indexed by argument, a column ``parameters``, a column ``dataframe_split``
    indexed by ``columns`` and ``data``): those shapes are turned back.
    """
    if isinstance(inputs, str | bytes):
        try:
            inputs = json.loads(inputs)
        except ValueError as error:
            raise InvalidInput(f"predict: the input is not JSON: {error}") from error
    if hasattr(inputs, "to_json") and hasattr(inputs, "columns"):
        return _body_of_frame(inputs)
    if hasattr(inputs, "tolist"):
        return {"inputs": inputs.tolist()}
    if isinstance(inputs, Mapping):
        if {"data"} == set(inputs) or {"parameters"} == set(inputs) or any(key in inputs for key in _SCORING):
            return dict(_plain(inputs))
        return {"inputs": _plain(inputs)}
    if isinstance(inputs, list):
        return {"inputs": inputs}
    raise InvalidInput(f"predict: a body, a DataFrame, an array or a list is wanted, not {type(inputs).__name__}.")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):
        return value.tolist()
    return value


def _body_of_frame(frame: Any) -> dict[str, Any]:
    columns = [str(c) for c in frame.columns]
    values = json.loads(frame.to_json(orient="split", date_format="iso", double_precision=15))
    if columns == ["data"] and all(isinstance(i, str) for i in frame.index):
        return {"data": dict(zip(values["index"], (row[0] for row in values["data"]), strict=True))}
    if columns == ["parameters"]:
        return {"parameters": [row[0] for row in values["data"]]}
    if len(columns) == 1 and columns[0] in _SCORING:
        cells = [row[0] for row in values["data"]]
        named = not all(isinstance(i, int) for i in values["index"])
        return {columns[0]: dict(zip(values["index"], cells, strict=True)) if named else cells}
    return {"dataframe_split": {"columns": columns, "data": values["data"]}}


def token_for(home: Home, view: EndpointView) -> str:
    """Return the caller's token: MLFLOW_DOMINO_TOKEN, or the one that `create` left in the home."""
    token = os.environ.get("MLFLOW_DOMINO_TOKEN") or secret.read_caller(home, view.endpoint.id)
    if not token:
        raise NotFound(
            f"No token for endpoint {view.endpoint.name!r} on this machine: set MLFLOW_DOMINO_TOKEN, or make one with "
            f"`mlflow-domino token create {view.endpoint.name} NAME`."
        )
    if not re.fullmatch(r"[A-Za-z0-9]{1,256}", token):
        raise InvalidInput("MLFLOW_DOMINO_TOKEN: a token has letters and digits only.")
    return token


def call(home: Home, view: EndpointView, body: Mapping[str, Any]) -> dict[str, Any]:
    """Post a body to the endpoint's `latest` route.

    Returns
    -------
    dict
        MLflow's ``{"predictions": …}``; an answer to a body of Domino's has its envelope's other fields beside.
    """
    domino = "data" in body or "parameters" in body
    url = view.url if domino else view.url.removesuffix("model") + "invocations"
    answer = send("POST", url, token_for(home, view), timeout_s=_timeout_s(view), body=body)
    return {"predictions": answer.pop("result"), **answer} if domino else answer


def send(
    method: str,
    url: str,
    token: str,
    *,
    timeout_s: float,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Call a gateway, and return the JSON object that it answers.

    Parameters
    ----------
    body : object
        Sent as JSON; None: nothing is.

    Raises
    ------
    Unavailable
        It does not answer, or somebody else does in its place.
    DominoError
        It answered with an error; in its own words.
    """
    import requests  # here: most verbs call nothing

    def authorize(request: Any) -> Any:  # a header alone would yield to what ~/.netrc has for the host
        request.headers["Authorization"] = f"Bearer {token}"
        return request

    timeout = (_CONNECT_S, timeout_s)
    try:
        response = requests.request(
            method,
            url,
            json=body,
            headers=dict(headers or {}),
            auth=authorize,
            proxies=secret.proxies(url),
            timeout=timeout,
        )
    except requests.exceptions.SSLError as error:
        raise Unavailable(
            f"{url}: its certificate is not trusted here; set REQUESTS_CA_BUNDLE to the certificate of its authority."
        ) from error
    except requests.RequestException as error:
        raise Unavailable(
            f"{url} does not answer ({type(error).__name__}); `mlflow-domino status` says why."
        ) from error
    if not response.ok:
        raise refused(response.status_code, response.text)
    with contextlib.suppress(ValueError):
        document = response.json()
        if isinstance(document, dict):
            return document
    raise Unavailable(f"What answers at {url} is no gateway of mlflow-domino: {response.text[:80]!r}.")


def refused(status: int, text: str) -> DominoError:
    """Return the error that an endpoint's answer means, in the endpoint's own words."""
    try:
        told = json.loads(text)["error"]
        message = f"{told['message']} (request_id {told['request_id']})" if told.get("request_id") else told["message"]
    except (ValueError, KeyError, TypeError):
        message = text[:1000]
    return _Answered(f"The endpoint answered {status}: {message}", status)


def _timeout_s(view: EndpointView) -> float:
    return view.endpoint.settings.request_timeout_s + 10.0


def example(home: Home, view: EndpointView) -> str:
    """Return a body for the curl line: the model's own example where it is short, or the arguments of the function."""
    key = "parameters" if view.endpoint.settings.is_async else "data"
    if view.current is None:
        return json.dumps({key: {}})
    folder, source = home.version(view.current.version.id), view.current.version.source
    data: Mapping[str, Any] = {}
    # It is a courtesy: what cannot be read here, such as a newer Python's syntax, has none.
    with contextlib.suppress(OSError, SyntaxError, ValueError, LookupError, TypeError):
        data = _arguments(folder, source) if isinstance(source, FileSource) else _first_row(folder)
    text = json.dumps({key: data})
    return text if len(text) < 400 and "'" not in text else json.dumps({key: {}})


def _first_row(folder: Path) -> dict[str, Any]:
    document = read_json(folder / "model" / "input_example.json")
    if not isinstance(document, Mapping) or not ({"columns", "data"} <= set(document) and document["data"]):
        return {}
    return dict(zip(document["columns"], document["data"][0], strict=False))


def _arguments(folder: Path, source: FileSource) -> dict[str, int]:
    """Return the function's arguments without a default, each 1, as Domino's own samples have it."""
    tree = ast.parse((folder / "source" / source.file).read_bytes())
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == source.function:
            positional = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
            needed = positional[: len(positional) - len(node.args.defaults)]
            pairs = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            return dict.fromkeys([*needed, *(a.arg for a, default in pairs if default is None)], 1)
    return {}
