"""What a caller of a replica may be told.

Refusal              any answer that is not 200; it owns its HTTP status
├── InvalidInput     400, the request's data
├── Unauthorized     401
├── NotFound         404
├── NotAllowed       405
├── LengthRequired   411
├── TooLarge         413
├── Unsupported      415, the media type
├── Overloaded       429
├── ModelFailed      500, the model raised, or its result has no JSON form
├── NotReady         503, nothing has begun
├── Lost             503, a process ended that was at it
└── Overdue          504

StartFailed          no answer at all: the replica cannot start, and says why in its status

Messages name the argument, column or limit; what the model raised stands in the log only.
"""

from __future__ import annotations

__all__ = [
    "InvalidInput",
    "LengthRequired",
    "Lost",
    "ModelFailed",
    "NotAllowed",
    "NotFound",
    "NotReady",
    "Overdue",
    "Overloaded",
    "Refusal",
    "StartFailed",
    "TooLarge",
    "Unauthorized",
    "Unsupported",
]


class Refusal(Exception):
    """An answer that is not 200.

    Parameters
    ----------
    message : str
        What is wrong with the request, for its sender.
    code : str
        A word for programs, where it should differ from the class's own.
    """

    status = 500
    code = "INTERNAL_ERROR"
    headers: tuple[tuple[str, str], ...] = ()

    def __init__(self, message: str, *, code: str = "") -> None:
        super().__init__(message)
        self.message = message
        if code:
            self.code = code


class InvalidInput(Refusal):
    status = 400
    code = "INVALID_INPUT"


class Unauthorized(Refusal):
    status = 401
    code = "UNAUTHORIZED"
    headers = (("WWW-Authenticate", 'Basic realm="domino endpoint"'),)


class NotFound(Refusal):
    status = 404
    code = "NOT_FOUND"


class NotAllowed(Refusal):
    """The path exists, the method does not."""

    status = 405
    code = "METHOD_NOT_ALLOWED"

    def __init__(self, message: str, *, allow: str) -> None:
        super().__init__(message)
        self.headers = (("Allow", allow),)


class LengthRequired(Refusal):
    status = 411
    code = "LENGTH_REQUIRED"


class TooLarge(Refusal):
    status = 413
    code = "PAYLOAD_TOO_LARGE"


class Unsupported(Refusal):
    status = 415
    code = "UNSUPPORTED_MEDIA_TYPE"


class Overloaded(Refusal):
    status = 429
    code = "TOO_MANY_REQUESTS"
    headers = (("Retry-After", "1"),)


class ModelFailed(Refusal):
    """The model raised, or gave what has no JSON form.

    Parameters
    ----------
    traceback : str
        For the log; in the answer only where the endpoint is in debug mode.
    """

    status = 500
    code = "MODEL_ERROR"

    def __init__(self, message: str, *, code: str = "", traceback: str = "") -> None:
        super().__init__(message, code=code)
        self.traceback = traceback


class NotReady(Refusal):
    status = 503
    code = "NOT_READY"
    headers = (("Retry-After", "1"),)


class Lost(Refusal):
    """The request may have run; nobody knows how far."""

    status = 503
    code = "LOST"
    headers = (("Retry-After", "1"),)


class Overdue(Refusal):
    status = 504
    code = "TIMEOUT"


class StartFailed(Exception):
    """The replica cannot serve this model.

    Parameters
    ----------
    reason : str
        One sentence for the endpoint's owner.
    detail : str
        The traceback, where there is one.
    """

    def __init__(self, reason: str, *, detail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


#: Statuses that werkzeug itself may raise, and what they are here.
BY_STATUS: dict[int, type] = {
    c.status: c for c in (InvalidInput, Unauthorized, NotFound, LengthRequired, TooLarge, Unsupported, Overloaded)
}
