"""Requests to a Kubernetes API server, each within a time limit, and answers or our errors."""

from __future__ import annotations

import email.utils
import json
import threading
import time
import weakref
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

from mlflow_domino.errors import Unavailable
from mlflow_domino.kubeconfig import Connection, connect
from mlflow_domino.refusal import Call, refusal, said, unreachable

__all__ = ["READ_S", "Answer", "Query", "Transport"]

_CONNECT_S = 2.0
READ_S = 5.0
#: How often a request is sent that the server put off, or a harmless one on a connection that it had just closed.
_TRIES = 3

Query = list[tuple[str, str]]


@dataclass(frozen=True)
class Answer:
    """What came back; the body of a success is still to be read."""

    code: int
    headers: Mapping[str, str]
    body: bytes = b""
    response: Any = None


class Transport:
    """Connects when first needed, by the credentials of a kubeconfig or of the pod that this is.

    Parameters
    ----------
    context, namespace, kubeconfig
        As for `Cluster`.
    """

    def __init__(self, context: str, namespace: str, kubeconfig: str | None) -> None:
        self._wanted = (context, namespace, kubeconfig)
        self._connecting = threading.Lock()
        self._made: tuple[Connection, Any] | None = None
        #: Seconds that the server's clock is ahead of ours, as its last answer told.
        self.skew: float | None = None

    @property
    def connection(self) -> Connection:
        return self._open()[0]

    def close(self) -> None:
        """End all connections; the next request opens a new one."""
        if self._made is not None:
            self._made[0].client.rest_client.pool_manager.clear()

    def json(
        self, call: Call, method: str, path: str, *, query: Query | None = None, body: Any = None,
        content_type: str = "application/json", read_s: float = READ_S,
    ) -> dict[str, Any]:  # fmt: skip
        """Send a request and return the document of the answer.

        Raises
        ------
        DominoError
            As the server says, or `Unreachable`.
        """
        answer = self.send(call, method, path, query=query, body=body, content_type=content_type, read_s=read_s)
        content = self.read(call, answer)
        try:
            document: dict[str, Any] = json.loads(content)
        except ValueError:
            raise Unavailable(f"What answers as {call.cluster} is no API server: {content[:80]!r}.") from None
        return document

    def send(
        self, call: Call, method: str, path: str, *, query: Query | None = None, body: Any = None,
        content_type: str = "application/json", read_s: float = READ_S,
    ) -> Answer:  # fmt: skip
        """Send a request and return the answer; a refusal of the server's is an error."""
        for left in reversed(range(_TRIES)):
            answer = self.attempt(call, method, path, query=query, body=body, content_type=content_type, read_s=read_s)
            if 200 <= answer.code < 300:
                return answer
            if answer.code != 429 or not left:
                break
            time.sleep(min(_seconds(answer.headers.get("Retry-After")), 1.0))  # it has not begun with it
        raise refusal(call, answer.code, answer.body)

    def attempt(
        self, call: Call, method: str, path: str, *, query: Query | None = None, body: Any = None,
        content_type: str = "application/json", read_s: float = READ_S,
    ) -> Answer:  # fmt: skip
        """Send a request and return the answer, whatever it is.

        Raises
        ------
        Unreachable
            There is none.
        """
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError, NewConnectionError, ProtocolError

        api = self._open()[1]
        for left in reversed(range(_TRIES)):
            begun = time.time()
            try:
                response = api.request(
                    method, path, body=body, query_params=list(query or ()), content_type=content_type, serialize=False,
                    _request_timeout=(_CONNECT_S, read_s),
                )  # fmt: skip
                self._note_time(response.headers, begun)
                return Answer(response.status, response.headers, response=response)
            except ApiException as error:
                if not error.status:
                    raise unreachable(call, error, written=False) from None
                self._note_time(error.headers or {}, begun)
                return Answer(error.status, error.headers or {}, _bytes(error.body))
            except ProtocolError as error:  # a kept connection may have been closed just now
                if method != "GET" or not left:
                    raise unreachable(call, error, written=method != "GET") from None
            except (HTTPError, OSError) as error:
                sent = method != "GET" and not isinstance(error, NewConnectionError)
                raise unreachable(call, error, written=sent) from None
        raise AssertionError("the last attempt returns or raises")

    def read(self, call: Call, answer: Answer) -> bytes:
        """Return the whole body of a success."""
        from urllib3.exceptions import HTTPError

        try:
            content: bytes = answer.response.data
        except (HTTPError, OSError) as error:
            raise unreachable(call, error, written=False) from None
        return content

    def lines(self, call: Call, answer: Answer) -> Generator[bytes, None, None]:
        """Yield the lines of a body as they come, until it ends or the caller stops asking."""
        from urllib3.exceptions import HTTPError

        rest = b""
        try:
            for chunk in answer.response.stream():
                *whole, rest = (rest + chunk).split(b"\n")
                yield from whole
        except (HTTPError, OSError) as error:
            raise unreachable(call, error, written=False) from None
        finally:
            answer.response.close()

    def _open(self) -> tuple[Connection, Any]:
        with self._connecting:
            if self._made is None:
                connection = connect(*self._wanted)
                from kubernetes.dynamic import DynamicClient

                weakref.finalize(self, connection.client.rest_client.pool_manager.clear)
                # Its own discovery asks for everything, and trusts a file in the folder of temporary files.
                self._made = connection, DynamicClient(connection.client, discoverer=lambda *_: None)
            return self._made

    def _note_time(self, headers: Mapping[str, str], begun: float) -> None:
        moment, ended = email.utils.parsedate_tz(headers.get("Date") or ""), time.time()
        if moment is not None and (self.skew is None or 0 <= ended - begun < 1):  # else too vague
            self.skew = email.utils.mktime_tz(moment) + 0.5 - (begun + ended) / 2  # it was cut to whole seconds


def own(answer: Answer) -> bool:
    """Whether an answer is the API server's own, not one that it passed on."""
    return said(answer.body) is not None


def _seconds(text: str | None) -> float:
    try:
        return max(0.0, float(text or 1))
    except ValueError:
        return 1.0


def _bytes(body: bytes | str | None) -> bytes:
    return body.encode("utf-8", "surrogateescape") if isinstance(body, str) else body or b""
