"""Everything that this package raises.

DominoError
├── Refused               we refuse, and the caller can mend it
│   ├── InvalidInput      a value, a key, a name or a file of the caller's is wrong
│   ├── NotFound          no such endpoint, version, token, model or file
│   ├── AlreadyExists     the name is taken
│   ├── Conflict          somebody else is changing the same thing right now
│   ├── Forbidden         the data plane does not let you: a right, a quota or a rule of its own
│   └── Unsupported       this data plane, machine or release cannot do that
└── Failed                we tried, and something else failed
    ├── EnvironmentFailed requirements cannot be resolved or installed, or no interpreter is to be had
    ├── StartFailed       a version was built but did not become ready
    ├── GatewayFailed     the gateway did not come up, or did not accept its configuration
    └── Unavailable       the data plane or an endpoint does not answer; trying later may help
        ├── Unreachable   nothing answers at all where the data plane is meant to be
        └── Expired       what was asked for is gone from the data plane's memory; ask from the beginning

Messages start with the fact, name the thing, and end with the way out. They are written for the person who typed the
command; nothing in them is secret. `mlflow_domino.client` maps the tree to `MlflowException`, `mlflow_domino.cli` to
exit codes, nobody else.
"""

from __future__ import annotations

__all__ = [
    "AlreadyExists",
    "Conflict",
    "DominoError",
    "EnvironmentFailed",
    "Expired",
    "Failed",
    "Forbidden",
    "GatewayFailed",
    "InvalidInput",
    "NotFound",
    "Refused",
    "StartFailed",
    "Unavailable",
    "Unreachable",
    "Unsupported",
]


class DominoError(Exception):
    """Base of every error that is meant for a person.

    Parameters
    ----------
    message : str
        What happened and what to do about it.
    log_tail : str
        Last lines of the build's or the replica's log where they explain the failure, already redacted.
    """

    #: MLflow's name of the error code (mlflow.protos.databricks_pb2.ErrorCode).
    code = "INTERNAL_ERROR"
    #: Exit code of `mlflow-domino`.
    exit_code = 1

    def __init__(self, message: str, *, log_tail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.log_tail = log_tail

    def __str__(self) -> str:
        if not self.log_tail:
            return self.message
        indented = "\n".join(f"  | {line}" for line in self.log_tail.splitlines())
        return f"{self.message}\n{indented}"


class Refused(DominoError):
    code = "INVALID_PARAMETER_VALUE"
    exit_code = 2


class InvalidInput(Refused):
    pass


class NotFound(Refused):
    code = "RESOURCE_DOES_NOT_EXIST"
    exit_code = 3


class AlreadyExists(Refused):
    code = "RESOURCE_ALREADY_EXISTS"


class Conflict(Refused):
    code = "RESOURCE_CONFLICT"
    exit_code = 4


class Forbidden(Refused):
    code = "PERMISSION_DENIED"


class Unsupported(Refused):
    code = "NOT_IMPLEMENTED"


class Failed(DominoError):
    code = "INTERNAL_ERROR"


class EnvironmentFailed(Failed):
    code = "INVALID_STATE"


class StartFailed(Failed):
    code = "INVALID_STATE"


class GatewayFailed(Failed):
    pass


class Unavailable(Failed):
    code = "TEMPORARILY_UNAVAILABLE"
    exit_code = 5


class Unreachable(Unavailable):
    pass


class Expired(Unavailable):
    pass
