"""What happens to a request, whichever way it came: Flask's routes and the hot path both end here."""

from __future__ import annotations

import time
import traceback
from typing import Any, Callable, Mapping

from . import __version__
from .config import Config
from .connection import NoConnection
from .encoding import encode
from .errors import InvalidInput, LengthRequired, ModelFailed, Overdue, Refusal, TooLarge, Unsupported
from .log import Redaction, log
from .openapi import document
from .parsing import parse_json
from .predictor import Predictor, parse_call
from .tokens import Tokens
from .tracker import Ticket

__all__ = ["TICKET", "Service", "Work", "bug", "discard_body", "failure"]

#: Where in the WSGI environment a request's ticket is.
TICKET = "domino.ticket"
_BODY_READ = "domino.body_read"
#: A refused body is read to its end up to here: a connection closed with bytes unread loses the answer too.
_DISCARD = 64 << 20
#: curl's default is a form; scripts rarely say anything else than JSON.
_JSON_TYPES = ("", "application/json", "text/json", "text/plain", "application/x-www-form-urlencoded")


class Work:
    """One request for the model.

    Attributes
    ----------
    path : str
    ticket : Ticket
    body : bytes
    form : callable
        Makes the answer's body of this and of the result.
    input : Input
        What was checked.
    started : float
        When the body was read, of ``time.perf_counter()``.
    """

    __slots__ = ("body", "form", "input", "path", "started", "ticket")

    def __init__(self, environ: Mapping[str, Any], body: bytes, form: Callable[[Work, Any], bytes]) -> None:
        self.path: str = environ.get("PATH_INFO", "")
        self.ticket: Ticket = environ[TICKET]
        self.body = body
        self.form = form
        self.started = time.perf_counter()
        self.input: Any = None


class Service:
    """Answers requests with one model.

    Parameters
    ----------
    config : Config
    predictor : Predictor
    tokens : Tokens
    """

    def __init__(self, config: Config, predictor: Predictor, tokens: Tokens) -> None:
        self._config = config
        self._predictor = predictor
        self._tokens = tokens
        self._redaction = Redaction(config.secrets)
        self._release = _release(config)
        self._encoded_release = encode(self._release)

    def authenticate(self, environ: Mapping[str, Any]) -> None:
        self._tokens.check(environ.get("HTTP_AUTHORIZATION", ""))

    def model(self, environ: dict[str, Any]) -> bytes:
        """Answer POST /model."""
        return self.answer(self.accept_model(environ))

    def invocations(self, environ: dict[str, Any]) -> bytes:
        """Answer POST /invocations, as MLflow's scoring server does."""
        return self.answer(self.accept_invocations(environ))

    def accept_model(self, environ: dict[str, Any]) -> Work:
        """Read and check a request to /model, up to the model."""
        kind = environ.get("CONTENT_TYPE", "")
        if kind != "application/json":
            kind = kind.partition(";")[0].strip().lower()
            if kind not in _JSON_TYPES and not kind.endswith("+json"):
                raise Unsupported(f"the body must be application/json, not {kind}")
        body = self.read_body(environ)
        call = parse_call(parse_json(body))
        work = Work(environ, body, self._envelope)
        work.input = self._run(work.ticket, lambda: self._predictor.prepare_call(call))
        return work

    def accept_invocations(self, environ: dict[str, Any]) -> Work:
        """Read and check a request to /invocations, up to the model."""
        body = self.read_body(environ)
        work = Work(environ, body, lambda _, result: encode(result))
        kind = environ.get("CONTENT_TYPE", "")
        work.input = self._run(work.ticket, lambda: self._predictor.prepare_body(body, kind))
        return work

    def answer(self, work: Work) -> bytes:
        """Let the model answer a request alone."""
        return self.render(work, self._run(work.ticket, work.input.run))

    def render(self, work: Work, result: Any) -> bytes:
        """Return the body of the answer with this result."""
        answer = work.form(work, result)
        self._log_bodies(work.ticket, work.body, answer)
        return answer

    def _envelope(self, work: Work, result: Any) -> bytes:
        elapsed_ms = (time.perf_counter() - work.started) * 1000
        return b'{"model_time_in_ms":%d,"release":%s,"request_id":"%s","result":%s,"timing":%s}' % (
            int(elapsed_ms),
            self._encoded_release,
            work.ticket.request_id.encode("ascii"),
            encode(result, "result"),
            repr(elapsed_ms).encode("ascii"),
        )

    def describe(self) -> dict[str, Any]:
        """Return the OpenAPI document."""
        return document(self._config, self._predictor.describe())

    def version(self) -> dict[str, Any]:
        return dict(self._release)

    def read_body(self, environ: dict[str, Any]) -> bytes:
        """Return the body, or refuse it before it is read.

        Raises
        ------
        LengthRequired
            For a chunked one: uWSGI would read it as empty. (The gateway gives it a length.)
        TooLarge, InvalidInput
        """
        if environ.get("HTTP_TRANSFER_ENCODING"):
            raise LengthRequired("send the body with a Content-Length: chunked bodies are not read here")
        length = content_length(environ)
        if length > self._config.max_body:
            raise TooLarge(f"the body has {length} bytes, the limit is {self._config.max_body} (setting max_body)")
        environ[_BODY_READ] = True
        try:
            body = environ["wsgi.input"].read(length) if length else b""
        except OSError:  # uWSGI's word for a caller that went away, or stopped sending
            body = b""
        if len(body) != length:
            raise InvalidInput(f"the body ended after {len(body)} of {length} bytes")
        return body

    def refuse(self, refusal: Refusal, request_id: str) -> bytes:
        """Return the body of an answer that is not 200, and write what only the log may say."""
        error = {"code": refusal.code, "message": self._redaction(refusal.message), "request_id": request_id}
        if isinstance(refusal, ModelFailed):
            log(f"{refusal.message}\n{refusal.traceback}".rstrip(), request_id=request_id)
            if self._config.debug and refusal.traceback:
                error["traceback"] = self._redaction(refusal.traceback)
        return encode({"error": error})

    def _run(self, ticket: Ticket, work: Callable[[], Any]) -> Any:
        """Run the model's part of a request; whatever it raises becomes an answer, and never ends the process."""
        if time.monotonic() >= ticket.deadline:
            raise Overdue("the time limit was over before the model could begin")
        try:
            return work()
        except Refusal:
            raise
        except BaseException as error:
            raise failure() from error

    def _log_bodies(self, ticket: Ticket, body: bytes, answer: bytes) -> None:
        if self._config.log_http_request_response:
            log("request {}".format(body.decode("utf-8", "replace")), request_id=ticket.request_id)
            log("answer {}".format(answer.decode("utf-8", "replace")), request_id=ticket.request_id)


def failure() -> ModelFailed:
    """Return what the caller is told of the exception that is handled just now."""
    text = "the model failed; the traceback is in the replica's log, under this request_id"
    return ModelFailed(text, traceback=traceback.format_exc())


def bug(error: BaseException, request_id: str) -> Refusal:
    """Log an exception that is the harness's own, and return what the caller is told."""
    log("the harness itself failed", request_id=request_id, error=error)
    return Refusal("the harness failed; the traceback is in the replica's log, under this request_id")


def content_length(environ: Mapping[str, Any]) -> int:
    try:
        return max(0, int(environ.get("CONTENT_LENGTH") or 0))
    except ValueError:
        raise InvalidInput("the Content-Length is not a number") from None


def discard_body(environ: dict[str, Any], connection: NoConnection) -> None:
    """Read what nobody has read, so that the caller gets the answer and not a reset connection."""
    if environ.get(_BODY_READ) or environ.get("HTTP_EXPECT"):
        return
    if environ.get("HTTP_TRANSFER_ENCODING"):
        connection.discard_chunks()
        return
    try:
        left = min(content_length(environ), _DISCARD)
        while left > 0:
            read = environ["wsgi.input"].read(min(left, 1 << 16))
            if not read:
                return
            left -= len(read)
    except (InvalidInput, OSError):
        return


def _release(config: Config) -> dict[str, Any]:
    release = {
        "harness_version": __version__,
        "model_version": config.version_id,
        "model_version_number": config.version_number,
    }
    if config.source.kind == "Registry" and config.source.name:
        release["registered_model_name"] = config.source.name
        release["registered_model_version"] = str(config.source.version)
    return release
