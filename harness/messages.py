"""The gateway's messages, answered in front of seldon-core's Flask application: by seldon-core itself, with the same answers.

What Flask does for a request costs as much as all the rest of the microservice; whatever is not plainly a message still
goes through it.
"""

from __future__ import annotations

import io
import json
from typing import Any, Callable, Iterable

from .component import Component, failure
from .config import Config
from .errors import Refusal
from .log import log
from .tokens import Tokens

__all__ = ["Messages"]

_PATH = "/api/v1.0/predictions"
_LINES = {
    200: "200 OK", 400: "400 BAD REQUEST", 413: "413 REQUEST ENTITY TOO LARGE", 429: "429 TOO MANY REQUESTS",
    500: "500 INTERNAL SERVER ERROR", 503: "503 SERVICE UNAVAILABLE", 504: "504 GATEWAY TIMEOUT",
}  # fmt: skip


class Messages:
    """What stands in front of the application.

    Parameters
    ----------
    app : Flask
    config : Config
    component : Component
    tokens : Tokens
    predict : callable
        Seldon-core's own: gets a message, and returns its answer.
    """

    def __init__(
        self, app: Any, config: Config, component: Component, tokens: Tokens, predict: Callable[[Any], Any]
    ) -> None:
        self._app = app
        self._max_body = config.max_body
        self._component = component
        self._tokens = tokens
        self._predict = predict

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        length = self._length(environ)
        if not length:
            return self._app(environ, start_response)  # type: ignore[no-any-return]
        body = environ["wsgi.input"].read(length)
        environ["wsgi.input"] = io.BytesIO(body)
        try:
            message = json.loads(body)
        except (ValueError, RecursionError):
            message = None
        if len(body) != length or not isinstance(message, dict):
            return self._app(environ, start_response)  # type: ignore[no-any-return]
        answer = self._answer(message, environ.get("HTTP_AUTHORIZATION", ""))
        told = answer.get("status")
        line = _LINES[told["code"] if isinstance(told, dict) else 200]
        encoded = _encoded(answer)
        start_response(line, [("Content-Type", "application/json"), ("Content-Length", str(len(encoded)))])
        return (encoded,)

    def _length(self, environ: dict[str, Any]) -> int:
        """Return the length of a message's body; 0 for all that the application is to look at."""
        if environ["REQUEST_METHOD"] != "POST" or environ.get("PATH_INFO") != _PATH:
            return 0
        if environ.get("CONTENT_TYPE") != "application/json" or environ.get("QUERY_STRING"):
            return 0
        if "HTTP_ORIGIN" in environ or "HTTP_TRANSFER_ENCODING" in environ:
            return 0
        try:
            length = int(environ.get("CONTENT_LENGTH") or 0)
            self._tokens.check(environ.get("HTTP_AUTHORIZATION", ""), by_gateway=True)
        except (ValueError, Refusal):
            return 0
        return length if 0 < length <= self._max_body else 0

    def _answer(self, message: dict[str, Any], authorization: str) -> dict[str, Any]:
        try:
            with self._component.asked_with(authorization):
                answer: dict[str, Any] = self._predict(message)
        except Exception as error:
            log("the microservice failed", error=error)
            return failure(500, "the microservice failed; the traceback is in the replica's log", "INTERNAL_ERROR")
        return answer


def _encoded(answer: dict[str, Any]) -> bytes:
    try:
        return json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError:  # half a character
        return json.dumps(answer, separators=(",", ":")).encode("ascii")
