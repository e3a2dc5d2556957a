"""The calls of the model, answered in front of Flask with the same answers; everything else is Flask's."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

from .errors import Refusal
from .joining import Joiner
from .service import TICKET, Service, Work, bug

__all__ = ["CORS", "JSON", "HotPath", "Reply"]

#: What Domino's own endpoints answer to browsers.
CORS = (
    ("Access-Control-Allow-Origin", "*"),
    ("Access-Control-Allow-Methods", "POST"),
    ("Access-Control-Allow-Headers", "authorization,content-type"),
)
_LINES = {
    200: "200 OK", 400: "400 BAD REQUEST", 401: "401 UNAUTHORIZED", 411: "411 LENGTH REQUIRED",
    413: "413 REQUEST ENTITY TOO LARGE", 415: "415 UNSUPPORTED MEDIA TYPE", 429: "429 TOO MANY REQUESTS",
    500: "500 INTERNAL SERVER ERROR", 503: "503 SERVICE UNAVAILABLE", 504: "504 GATEWAY TIMEOUT",
}  # fmt: skip
JSON = ("Content-Type", "application/json")


class Reply(NamedTuple):
    """An answer, as WSGI wants it."""

    status: str
    headers: list[tuple[str, str]]
    body: bytes

    def encoded(self) -> bytes:
        """Return the whole answer as it goes over the wire."""
        lines = ["HTTP/1.1 " + self.status, *(f"{name}: {value}" for name, value in self.headers), "", ""]
        return "\r\n".join(lines).encode("latin-1") + self.body


def success(body: bytes) -> Reply:
    return Reply("200 OK", [JSON, ("Content-Length", str(len(body))), *CORS], body)


class HotPath:
    """Answers POST /model and POST /invocations.

    Parameters
    ----------
    service : Service
    untouched : callable
        Whether Flask would do no more than this: nobody added a hook, or took a route over.
    joiner : Joiner or None
    """

    def __init__(self, service: Service, untouched: Callable[[], bool], joiner: Joiner | None = None) -> None:
        self._service = service
        self._untouched: Callable[[], bool] | None = untouched
        self.joiner = joiner
        self._accept: dict[str, Callable[[dict[str, Any]], Work]] = {
            "/model": service.accept_model,
            "/invocations": service.accept_invocations,
        }

    def takes(self, environ: dict[str, Any]) -> bool:
        if self._untouched is not None:
            if not self._untouched():
                self._accept = {}
            self._untouched = None  # an application cannot be changed any more once it serves
        return environ["REQUEST_METHOD"] == "POST" and environ.get("PATH_INFO") in self._accept

    def answer(self, environ: dict[str, Any]) -> Reply | None:
        """Return the answer; None where it waits to be joined with others, and will be sent with theirs."""
        try:
            self._service.authenticate(environ)
            work = self._accept[environ["PATH_INFO"]](environ)
            if self.joiner is not None and work.input.key is not None and self.joiner.take(work):
                return None
            return success(self._service.answer(work))
        except Exception as error:
            return self.refuse(error, environ[TICKET].request_id)

    def reply(self, work: Work, outcome: Any) -> Reply:
        """Return the answer to a kept request: with its result, or with what was raised."""
        if not isinstance(outcome, BaseException):
            try:
                return success(self._service.render(work, outcome))
            except Exception as error:
                outcome = error
        return self.refuse(outcome, work.ticket.request_id)

    def refuse(self, error: BaseException, request_id: str) -> Reply:
        """Return the answer for an exception."""
        refusal = error if isinstance(error, Refusal) else bug(error, request_id)
        body = self._service.refuse(refusal, request_id)
        length = ("Content-Length", str(len(body)))
        return Reply(_LINES[refusal.status], [JSON, length, *refusal.headers, *CORS], body)
