"""Transactions on the queue's database: SQLite on a disk of this machine, or PostgreSQL."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import sqlalchemy as sa

from mlflow_domino.errors import DominoError, Unavailable, Unsupported
from mlflow_domino.queue.schema import SCHEMA_VERSION, meta, metadata

__all__ = ["MIGRATIONS", "Database", "sqlite_url"]

T = TypeVar("T")
Work = Callable[[sa.Connection], T]

#: How to bring tables of version N to N + 1.
MIGRATIONS: Mapping[int, Callable[[sa.Connection], None]] = {}
_PATIENCE_S = 10
#: Of PostgreSQL's connections: one for each thread of a gateway.
_READERS = 32
#: A connection to a server that was used later than this is there still, or the failure is the caller's to see.
_RESTED_S = 1.0
#: Transactions that are joined into one at most; each waits for all of them.
_JOINED = 64
_POSTGRESQL = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15000,
    "application_name": "mlflow-domino",
    "options": "-c statement_timeout=30000 -c idle_in_transaction_session_timeout=60000",
}
#: Of PostgreSQL's advisory lock under which tables are made.
_MAKING = 0x646F6D696E6F


def sqlite_url(path: Path) -> str:
    """Return the URL of a database in a file."""
    return sa.URL.create("sqlite", database=str(path)).render_as_string()


class Database:
    """Reads and writes of one queue, by any number of threads and processes.

    Parameters
    ----------
    url : str
        ``sqlite:////path/of/a/file`` or ``postgresql://user:password@host/database``.

    Raises
    ------
    Unavailable
        It does not answer, or is full.
    Unsupported
        A newer release wrote it, or the driver of PostgreSQL is missing.
    """

    def __init__(self, url: str) -> None:
        parsed = sa.make_url(url)
        self.sqlite = parsed.get_backend_name() == "sqlite"
        if self.sqlite:
            self._file = Path(str(parsed.database))
            self._lock = _FileLock(self._file.with_name(f"{self._file.name}-lock"))
            self._file.touch(mode=0o600)  # what SQLite puts beside it takes its mode
            self._engine = _sqlite(parsed)
        else:
            self._engine = _postgresql(parsed)
        self._errors = self._engine.dialect.loaded_dbapi
        self._own = threading.local()
        self._kept: list[sa.Connection] = []
        self._leading = threading.Lock()
        self._waiting: list[_Job[Any]] = []
        try:
            self.write(self._make)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for connection in self._kept:
            with contextlib.suppress(sa.exc.SQLAlchemyError):
                connection.close()
        self._engine.dispose()
        if self.sqlite:
            self._lock.close()

    def claim(self) -> bool:
        """Be the one dispatcher of a database in a file, for the life of this process; waits for an earlier one to end.

        Returns
        -------
        bool
            Whether there can be no other one.
        """
        if not self.sqlite:
            return False
        _FileLock(self._file.with_name(f"{self._file.name}-dispatcher")).__enter__()
        return True

    def read(self, work: Work[T]) -> T:
        """Return what `work` finds."""
        with self._reported():
            if self.sqlite:
                return work(self._kept_by_thread())
            with self._engine.connect() as connection:
                return work(connection)

    def _kept_by_thread(self) -> sa.Connection:
        """Return the connection of a thread: to take one from a pool costs as much as a query.

        What is read is one statement, or need not be of one moment: transactions are begun for writes only.
        """
        connection: sa.Connection | None = getattr(self._own, "connection", None)
        if connection is None or connection.closed or connection.invalidated:
            connection = self._own.connection = self._engine.connect()
            self._kept.append(connection)
        return connection

    def write(self, work: Work[T], *, durable: bool = True) -> T:
        """Do `work` in one transaction, and return when it is on disk.

        Parameters
        ----------
        durable : bool
            Whether it must outlive the machine; everything outlives the processes that wrote it.

        Raises
        ------
        Unavailable
            Nothing was written. (When a connection breaks just then, it may have been, as with any database.)
        """
        if not self.sqlite:
            with self._reported(), self._engine.begin() as connection:
                if not durable:
                    connection.exec_driver_sql("SET LOCAL synchronous_commit TO off")
                return work(connection)
        job = _Job(work, durable)
        self._waiting.append(job)
        # An fsync is what a transaction costs: whoever gets here first takes with it what waits meanwhile.
        with self._leading:
            while not job.done:
                self._lead()
        return job.outcome()

    def _lead(self) -> None:
        jobs = self._waiting[:_JOINED]
        del self._waiting[: len(jobs)]
        try:
            # The kernel hands a lock on at once; SQLite itself would look again after a pause.
            durable = any(job.durable for job in jobs)
            with self._reported(), self._lock, _transaction(self._kept_by_thread(), durable) as connection:
                for job in jobs:
                    job.run(connection)
        except BaseException as error:
            for job in jobs:
                job.fail(error)
            if not isinstance(error, Exception):
                raise

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        """Say in our words that the database failed; what is wrong with a value would be so again, and is raised."""
        driver = self._errors
        try:
            yield
        except (sa.exc.DataError, sa.exc.IntegrityError, sa.exc.ProgrammingError):
            raise
        except (driver.DataError, driver.IntegrityError, driver.ProgrammingError):
            raise
        except (sa.exc.DBAPIError, sa.exc.TimeoutError, driver.Error, OSError) as error:
            self._own.connection = None
            reason = str(getattr(error, "orig", None) or error).strip().splitlines() or [type(error).__name__]
            raise Unavailable(f"The queue of predictions cannot be used: {reason[0]}.") from error

    def _make(self, connection: sa.Connection) -> None:
        if not self.sqlite:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MAKING)))
        metadata.create_all(connection)
        found = connection.scalar(sa.select(meta.c.value).where(meta.c.key == "schema_version"))
        if found is None:
            connection.execute(meta.insert().values(key="schema_version", value=str(SCHEMA_VERSION)))
            return
        if int(found) > SCHEMA_VERSION:
            raise Unsupported(
                f"The queue of predictions was written by a newer release of mlflow-domino (tables {found}, this "
                f"release knows {SCHEMA_VERSION}); upgrade mlflow-domino."
            )
        for step in range(int(found), SCHEMA_VERSION):
            MIGRATIONS[step](connection)
        connection.execute(meta.update().where(meta.c.key == "schema_version").values(value=str(SCHEMA_VERSION)))


class _Job(Generic[T]):
    """One caller's transaction, which another may commit."""

    def __init__(self, work: Work[T], durable: bool) -> None:
        self._work = work
        self.durable = durable
        self._result: T | None = None
        self._error: BaseException | None = None
        self.done = False

    def run(self, connection: sa.Connection) -> None:
        try:
            self._result = self._work(connection)
        except DominoError as error:  # a refusal of this one, which has written nothing
            self._error = error
        self.done = True

    def fail(self, error: BaseException) -> None:
        self._error = error
        self.done = True

    def outcome(self) -> T:
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]  # what `work` returned, None included


class _FileLock:
    """A lock among processes that the kernel releases when its holder ends, however it ends."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def __enter__(self) -> None:
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        os.close(self._descriptor)


def _sqlite(url: sa.URL) -> sa.Engine:
    engine = sa.create_engine(
        url,
        poolclass=sa.NullPool,
        isolation_level="AUTOCOMMIT",  # transactions begin where we say
        connect_args={"check_same_thread": False, "timeout": _PATIENCE_S},
    )

    def connected(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "cache_size=-2048"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    sa.event.listen(engine, "connect", connected)
    return engine


@contextlib.contextmanager
def _transaction(connection: sa.Connection, durable: bool) -> Iterator[sa.Connection]:
    """Write in one transaction, which is on disk when this ends, or has not happened."""
    driver = connection.connection
    driver.cursor().execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
    driver.cursor().execute("BEGIN IMMEDIATE")
    try:
        yield connection
        driver.cursor().execute("COMMIT")
    except BaseException:
        with contextlib.suppress(Exception):  # after some errors SQLite has rolled back already
            driver.cursor().execute("ROLLBACK")
        raise


def _postgresql(url: sa.URL) -> sa.Engine:
    try:
        import psycopg  # noqa: F401 - an extra: most installations have no PostgreSQL
    except ImportError:
        raise Unsupported("A queue in PostgreSQL needs its driver: pip install 'mlflow-domino[postgresql]'.") from None
    named = {key: value for key, value in _POSTGRESQL.items() if key not in url.query}
    engine = sa.create_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_size=_READERS,
        max_overflow=0,
        pool_timeout=_PATIENCE_S,
        connect_args=named,
    )

    def returned(_connection: Any, record: Any) -> None:
        record.info["rests_since"] = time.monotonic()

    def taken(connection: Any, record: Any, _proxy: Any) -> None:
        """Try a connection that has rested, as the pool itself would try each one each time."""
        if time.monotonic() - record.info.get("rests_since", time.monotonic()) > _RESTED_S:
            try:
                engine.dialect.do_ping(connection)
            except engine.dialect.loaded_dbapi.Error as error:
                raise sa.exc.InvalidatePoolError from error

    sa.event.listen(engine, "checkin", returned)
    sa.event.listen(engine, "checkout", taken)
    return engine
