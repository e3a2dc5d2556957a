"""Where everything of this machine's data plane is: the folder of `MLFLOW_DOMINO_HOME`."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow_domino.errors import Conflict, InvalidInput

__all__ = ["Home", "read_json", "write_json", "write_text"]

#: A Unix socket's path has at most 107 bytes (sys/un.h), and ours are at most 40 longer than the run folder.
_RUN_LIMIT = 60


@dataclass(frozen=True)
class Home:
    """Paths below one home. Nothing is created before it is needed.

    Attributes
    ----------
    root : Path
    plane : str
        Data plane whose supervisor and gateway are meant, where a home has several; the others' have paths of their own.
    """

    root: Path
    plane: str = "local"

    @classmethod
    def find(cls) -> Home:
        """Return the home that the environment names, ``~/.mlflow-domino`` by default; by its one real path."""
        named = os.environ.get("MLFLOW_DOMINO_HOME") or "~/.mlflow-domino"
        return cls(Path(named).expanduser().resolve())

    @property
    def config(self) -> Path:
        return self.root / "config.toml"

    @property
    def database(self) -> Path:
        return self.root / "domino.db"

    @property
    def predictions(self) -> Path:
        """Database of asynchronous predictions, where the data plane names no other."""
        return self.root / f"predictions{self._suffix}.db"

    @property
    def queue(self) -> Path:
        """File of mode 0600 with the URL of the database of asynchronous predictions."""
        return self.root / f"queue{self._suffix}"

    @property
    def environments(self) -> Path:
        return self.root / "environments"

    @property
    def harnesses(self) -> Path:
        return self.root / "harnesses"

    @property
    def run(self) -> Path:
        """Folder of sockets and of what lives no longer than the supervisor."""
        inside = self.root / f"run{self._suffix}"
        if len(os.fsencode(inside)) <= _RUN_LIMIT:
            return inside
        digest = hashlib.sha256(os.fsencode(f"{self.root}{self._suffix}")).hexdigest()[:12]
        # Not TMPDIR: it may be as long, and differ from one command to the next.
        return Path("/tmp") / f"mlflow-domino-{os.getuid()}-{digest}"  # noqa: S108 - `ensure` checks whose it is

    def log(self, program: str) -> Path:
        """Log of a program of the gateway's."""
        return self.root / f"{program}{self._suffix}.log"

    @property
    def _suffix(self) -> str:
        return "" if self.plane == "local" else f"-{self.plane}"

    def version(self, version_id: str) -> Path:
        """Folder of a version: source/ or model/, requirements.lock, harness.json, secrets.json, build.log, logs/."""
        return self.root / "versions" / version_id

    def endpoint(self, endpoint_id: str) -> Path:
        """Folder of an endpoint: secrets.json, gateway-token and tokens/."""
        return self.root / "endpoints" / endpoint_id

    def tokens(self, endpoint_id: str) -> Path:
        """Folder with the file ``tokens.json`` that replicas read: digests only."""
        return self.root / "endpoints" / endpoint_id / "tokens"

    def caller_token(self, endpoint_id: str) -> Path:
        """Token of whoever created the endpoint, mode 0600, for `predict`."""
        return self.root / "callers" / endpoint_id

    def gateway_token(self, endpoint_id: str) -> Path:
        """The gateway's own token for the endpoint, mode 0600."""
        return self.root / "endpoints" / endpoint_id / "gateway-token"

    def ensure(self) -> None:
        """Create the home, closed to others; refuse one that cannot be written."""
        try:
            for folder in (self.root, self.run):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                if not os.access(folder, os.W_OK | os.X_OK):  # asks the disk too: one may be mounted read-only
                    raise PermissionError(errno.EACCES, "it is read-only", str(folder))
                # Where anybody may make files, a link could lead elsewhere tomorrow.
                status = folder.stat() if folder == self.root else folder.lstat()
                if status.st_uid != os.getuid():
                    raise InvalidInput(
                        f"{folder} belongs to another user; set MLFLOW_DOMINO_HOME to a folder of yours."
                    )
        except OSError as error:
            raise InvalidInput(
                f"{self.root} cannot be written ({error.strerror}); set MLFLOW_DOMINO_HOME to a folder of yours."
            ) from error

    @contextlib.contextmanager
    def lock(self, name: str, *, wait: bool = True, conflict: str = "") -> Iterator[int]:
        """Hold a lock that the kernel releases when the process ends, however it ends; yields its descriptor.

        Raises
        ------
        Conflict
            With the text `conflict`, when `wait` is false and another process holds it.
        """
        folder = self.root / "locks"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise Conflict(conflict) from None
            yield descriptor
        finally:
            os.close(descriptor)

    def forget_lock(self, name: str) -> None:
        """Remove the file of a lock that nobody will ask for again."""
        (self.root / "locks" / name).unlink(missing_ok=True)


def write_text(path: Path, content: str, *, mode: int = 0o600) -> None:
    """Replace a file whole, or leave it as it was."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(beside, mode)
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
        raise


def write_json(path: Path, document: Any, *, mode: int = 0o600) -> None:
    write_text(path, json.dumps(document, indent=1, sort_keys=True) + "\n", mode=mode)


def read_json(path: Path) -> Any:
    """Return what a JSON file of ours holds, or None where there is no such file."""
    try:
        return json.loads(path.read_text("utf-8", errors="surrogateescape"))
    except FileNotFoundError:
        return None
