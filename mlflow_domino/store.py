"""Records of endpoints, versions, tokens and unfinished operations.

`Records` is the contract; `SqliteRecords` keeps them in the home, in one file of SQLite. A record is written whole
and carries a revision: a write that was made from an older one is a `Conflict`, never a lost update.
`mlflow_domino.cluster_records` is the same contract in the objects of a namespace.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from mlflow_domino import secret
from mlflow_domino.config import Secrets
from mlflow_domino.errors import AlreadyExists, Conflict, DominoError, Unsupported
from mlflow_domino.home import Home
from mlflow_domino.models import Endpoint, Operation, Token, Version
from mlflow_domino.written import endpoint_of, known, to_text, version_of

__all__ = ["SCHEMA_VERSION", "Records", "SqliteRecords"]

#: Version of the tables and of the documents in them. Add a step to `MIGRATIONS` with each increase.
SCHEMA_VERSION = 1

#: How long a command waits for another one's write.
_PATIENCE_S = 10

Migration = Callable[[sa.Connection], None]
#: How to bring records of version N to N + 1.
MIGRATIONS: Mapping[int, Migration] = {}

_metadata = sa.MetaData()
_meta = sa.Table(
    "meta", _metadata, sa.Column("key", sa.String, primary_key=True), sa.Column("value", sa.String, nullable=False)
)
_endpoints = sa.Table(
    "endpoints",
    _metadata,
    sa.Column("id", sa.String(24), primary_key=True),
    sa.Column("name", sa.String, nullable=False, unique=True),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
)
_versions = sa.Table(
    "versions",
    _metadata,
    sa.Column("id", sa.String(24), primary_key=True),
    sa.Column("endpoint_id", sa.ForeignKey("endpoints.id"), nullable=False, index=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
    sa.UniqueConstraint("endpoint_id", "number"),
)
_tokens = sa.Table(
    "tokens",
    _metadata,
    sa.Column("id", sa.String(24), primary_key=True),
    sa.Column("endpoint_id", sa.ForeignKey("endpoints.id"), nullable=False, index=True),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("endpoint_id", "name"),
)
_operations = sa.Table(
    "operations",
    _metadata,
    sa.Column("endpoint_id", sa.String(24), primary_key=True),
    sa.Column("document", sa.Text, nullable=False),
)


class Records(abc.ABC):
    """What the controller needs of a place for records.

    To write: `endpoints`, `save_endpoint`, `remove_endpoint`, `versions`, `save_version`, `remove_version`, `tokens`,
    `save_token`, `remove_token`, `operations`, `save_operation`, `remove_operation`, `secrets`, `save_secrets`, `lock`,
    `forget_lock`.
    """

    @abc.abstractmethod
    def endpoints(self) -> list[Endpoint]:
        """Return all endpoints, by name."""

    @abc.abstractmethod
    def save_endpoint(self, endpoint: Endpoint) -> Endpoint:
        """Insert an endpoint of revision 0, or replace the one of the same revision; return it with the new revision.

        Raises
        ------
        AlreadyExists
            When a new endpoint's name is taken.
        Conflict
            When somebody wrote the endpoint since it was read, or removed it.
        """

    @abc.abstractmethod
    def remove_endpoint(self, endpoint_id: str) -> None:
        """Remove an endpoint with its versions, tokens and operation; one that is gone already is no error."""

    @abc.abstractmethod
    def versions(self, endpoint_id: str | None = None) -> list[Version]:
        """Return the versions of one endpoint, or of all, by number."""

    @abc.abstractmethod
    def save_version(self, version: Version) -> Version:
        """As `save_endpoint`; the number is unique within the endpoint."""

    @abc.abstractmethod
    def remove_version(self, version_id: str) -> None:
        """Remove a version; one that is gone already is no error."""

    @abc.abstractmethod
    def tokens(self, endpoint_id: str) -> list[Token]:
        """Return the tokens of an endpoint, oldest first."""

    @abc.abstractmethod
    def save_token(self, token: Token) -> None:
        """Insert a token; its name is unique within the endpoint (`AlreadyExists`)."""

    @abc.abstractmethod
    def remove_token(self, token_id: str) -> None:
        """Remove a token; one that is gone already is no error."""

    @abc.abstractmethod
    def operations(self) -> list[Operation]:
        """Return what has been begun and is not done."""

    @abc.abstractmethod
    def save_operation(self, operation: Operation) -> None:
        """Write down what is about to be done to an endpoint; an endpoint has one operation at most."""

    @abc.abstractmethod
    def remove_operation(self, endpoint_id: str) -> None:
        """Note that the endpoint's operation is done."""

    @abc.abstractmethod
    def secrets(self, of: Endpoint | Version) -> Secrets:
        """Return the secrets that were saved for an endpoint or a version; none is no secrets."""

    @abc.abstractmethod
    def save_secrets(self, of: Endpoint | Version, secrets: Secrets) -> None:
        """Keep secrets, closed to others; they go with what they belong to."""

    @abc.abstractmethod
    def lock(self, name: str, *, wait: bool = True, conflict: str = "") -> AbstractContextManager[object]:
        """Hold a lock that ends with the process that holds it, however that ends.

        Raises
        ------
        Conflict
            With the text `conflict`, when `wait` is false and somebody else holds it.
        """

    @abc.abstractmethod
    def forget_lock(self, name: str) -> None:
        """Remove what is left of a lock that nobody will ask for again."""

    def tidy(self) -> None:
        """Remove what killed commands left that belongs to no endpoint; where nothing of that sort is, there is nothing to do."""
        return


class SqliteRecords(Records):
    """Records in one file of SQLite, on a disk of this machine, and secrets in files beside it.

    Parameters
    ----------
    home : Home
        Has the file, which is made when it is first opened.
    migrations : mapping of int to callable
        Steps from older schema versions, for tests of the mechanism.

    Raises
    ------
    Unsupported
        When a newer release wrote the file.
    DominoError
        When the file is no database or is damaged.
    """

    def __init__(
        self, home: Home, *, schema_version: int = SCHEMA_VERSION, migrations: Mapping[int, Migration] = MIGRATIONS
    ) -> None:
        self._home = home
        self._path = path = home.database
        self._engine = sa.create_engine(sa.URL.create("sqlite", database=str(path)), poolclass=sa.NullPool)
        sa.event.listen(self._engine, "connect", _configure)
        with self._begin() as connection:
            # Several commands may open a new file at once; and a migration is done whole, or not at all.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            self._migrate(connection, schema_version, migrations)
        path.chmod(0o600)

    def _migrate(self, connection: sa.Connection, wanted: int, migrations: Mapping[int, Migration]) -> None:
        _metadata.create_all(connection)
        found = connection.scalar(sa.select(_meta.c.value).where(_meta.c.key == "schema_version"))
        if found is None:
            connection.execute(_meta.insert().values(key="schema_version", value=str(wanted)))
            return
        if int(found) == wanted:
            return
        if int(found) > wanted:
            raise Unsupported(
                f"{self._path} was written by a newer release of mlflow-domino (records {found}, this release knows "
                f"{wanted}); its endpoints go on serving. Upgrade mlflow-domino, or set MLFLOW_DOMINO_HOME to another folder."
            )
        for step in range(int(found), wanted):
            migrations[step](connection)
        connection.execute(_meta.update().where(_meta.c.key == "schema_version").values(value=str(wanted)))

    @contextlib.contextmanager
    def _begin(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except sa.exc.IntegrityError:
            raise
        except sa.exc.DBAPIError as error:
            raise self._unusable(str(error.orig)) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._unusable(f"a record in it is damaged ({type(error).__name__}: {error})") from error

    def _unusable(self, why: str) -> DominoError:
        return DominoError(
            f"The records in {self._path} cannot be used: {why}. What runs goes on running. "
            "Free the disk or restore the file from a copy; a file that is beyond repair can be moved away."
        )

    def endpoints(self) -> list[Endpoint]:
        with self._begin() as connection:
            rows = connection.execute(sa.select(_endpoints).order_by(_endpoints.c.name))
            return [endpoint_of(row.document, row.revision) for row in rows]

    def save_endpoint(self, endpoint: Endpoint) -> Endpoint:
        saved = dataclasses.replace(endpoint, revision=endpoint.revision + 1)
        row = {"id": saved.id, "name": saved.name, "revision": saved.revision, "document": to_text(saved)}
        self._write(_endpoints, row, endpoint.revision, f"endpoint {endpoint.name!r}")
        return saved

    def remove_endpoint(self, endpoint_id: str) -> None:
        with self._begin() as connection:
            for table in (_operations, _tokens, _versions):
                connection.execute(table.delete().where(table.c.endpoint_id == endpoint_id))
            connection.execute(_endpoints.delete().where(_endpoints.c.id == endpoint_id))

    def versions(self, endpoint_id: str | None = None) -> list[Version]:
        query = sa.select(_versions).order_by(_versions.c.endpoint_id, _versions.c.number)
        if endpoint_id is not None:
            query = query.where(_versions.c.endpoint_id == endpoint_id)
        with self._begin() as connection:
            return [version_of(row.document, row.revision) for row in connection.execute(query)]

    def save_version(self, version: Version) -> Version:
        saved = dataclasses.replace(version, revision=version.revision + 1)
        row = {
            "id": saved.id,
            "endpoint_id": saved.endpoint_id,
            "number": saved.number,
            "revision": saved.revision,
            "document": to_text(saved),
        }
        self._write(_versions, row, version.revision, f"version {version.number}")
        return saved

    def remove_version(self, version_id: str) -> None:
        with self._begin() as connection:
            connection.execute(_versions.delete().where(_versions.c.id == version_id))

    def tokens(self, endpoint_id: str) -> list[Token]:
        query = sa.select(_tokens).where(_tokens.c.endpoint_id == endpoint_id).order_by(_tokens.c.created_ms)
        with self._begin() as connection:
            return [Token(**row._mapping) for row in connection.execute(query)]

    def save_token(self, token: Token) -> None:
        try:
            with self._begin() as connection:
                connection.execute(_tokens.insert().values(**dataclasses.asdict(token)))
        except sa.exc.IntegrityError as error:
            raise AlreadyExists(
                f"A token named {token.name!r} exists; choose another name or revoke it first."
            ) from error

    def remove_token(self, token_id: str) -> None:
        with self._begin() as connection:
            connection.execute(_tokens.delete().where(_tokens.c.id == token_id))

    def operations(self) -> list[Operation]:
        with self._begin() as connection:
            return [
                Operation(**known(Operation, json.loads(row.document)))
                for row in connection.execute(sa.select(_operations))
            ]

    def save_operation(self, operation: Operation) -> None:
        with self._begin() as connection:
            connection.execute(_operations.delete().where(_operations.c.endpoint_id == operation.endpoint_id))
            connection.execute(
                _operations.insert().values(endpoint_id=operation.endpoint_id, document=json.dumps(vars(operation)))
            )

    def remove_operation(self, endpoint_id: str) -> None:
        with self._begin() as connection:
            connection.execute(_operations.delete().where(_operations.c.endpoint_id == endpoint_id))

    def secrets(self, of: Endpoint | Version) -> Secrets:
        return secret.load(self._secrets_of(of))

    def save_secrets(self, of: Endpoint | Version, secrets: Secrets) -> None:
        secret.save(self._secrets_of(of), secrets)

    def lock(self, name: str, *, wait: bool = True, conflict: str = "") -> AbstractContextManager[object]:
        return self._home.lock(name, wait=wait, conflict=conflict)

    def forget_lock(self, name: str) -> None:
        self._home.forget_lock(name)

    def _secrets_of(self, of: Endpoint | Version) -> Path:
        # Data planes remove the folder of what is gone, with everything that is in it.
        return (self._home.endpoint(of.id) if isinstance(of, Endpoint) else self._home.version(of.id)) / "secrets.json"

    def _write(self, table: sa.Table, row: Mapping[str, Any], before: int, thing: str) -> None:
        try:
            with self._begin() as connection:
                if before == 0:
                    connection.execute(table.insert().values(**row))
                    return
                same = (table.c.id == row["id"]) & (table.c.revision == before)
                if connection.execute(table.update().where(same).values(**row)).rowcount != 1:
                    raise Conflict(f"Somebody else changed {thing} meanwhile; look at it and try again.")
        except sa.exc.IntegrityError as error:
            raise AlreadyExists(f"{thing[0].upper()}{thing[1:]} exists already.") from error


def _configure(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    # FULL, because a record that was acknowledged must survive the machine; WAL, so that readers never wait.
    cursor.execute(f"PRAGMA busy_timeout={_PATIENCE_S * 1000}")
    _use_wal(cursor)
    for pragma in ("synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _use_wal(cursor: sqlite3.Cursor) -> None:
    """Switch to WAL, which is the one thing that does not wait as busy_timeout says."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
