"""Removes an endpoint's predictions from the queue of a cluster's gateway.

Through the gateway's own API, since only its pods need to reach the database; directly, where there is no gateway.
"""

from __future__ import annotations

import time
from typing import Any

from mlflow_domino.errors import Unavailable
from mlflow_domino.queue.database import Database
from mlflow_domino.queue.queue import Queue
from mlflow_domino.secret import proxies

__all__ = ["forget_by_gateway", "forget_in"]

_API = "/api/modelApis/async/v1"
#: One call removes as much as fits into the time that the gateway gives it; the next one goes on.
_CALL_S = 70.0
_WHOLE_S = 900.0
_PAUSE_S = 1.0


def forget_by_gateway(url: str, token: str, endpoint_id: str) -> None:
    """Have a gateway remove everything of an endpoint's.

    Parameters
    ----------
    url : str
        Of the gateway.
    token : str
        Its management token.

    Raises
    ------
    Unavailable
        It does not answer, or cannot use its database.
    """
    deadline = time.monotonic() + _WHOLE_S
    while True:
        status, reason = _ask(f"{url}{_API}/{endpoint_id}", token)
        if status == 204:
            return
        if status != 504 or time.monotonic() > deadline:
            raise Unavailable(
                f"The predictions of the endpoint cannot be removed: the gateway at {url} answers "
                f"{f'{status}: {reason}' if status else f'nothing ({reason})'}. The same command goes on where it stopped."
            )
        time.sleep(_PAUSE_S)


def forget_in(database_url: str, endpoint_id: str) -> None:
    """Remove everything of an endpoint's from a database.

    Raises
    ------
    Unavailable
        It does not answer.
    """
    database = Database(database_url)
    try:
        Queue(database).forget(endpoint_id)
    finally:
        database.close()


def _ask(url: str, token: str) -> tuple[int, str]:
    """Return the status of the answer, 0 where there is none, and what it says."""
    import requests  # here: most verbs need it not

    def authorize(request: Any) -> Any:  # a header alone would yield to what ~/.netrc has for the host
        request.headers["Authorization"] = f"Bearer {token}"
        return request

    try:
        answer = requests.delete(url, auth=authorize, proxies=proxies(url), timeout=(10.0, _CALL_S))
    except requests.RequestException as error:
        return 0, type(error).__name__
    try:
        return answer.status_code, str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return answer.status_code, answer.reason
