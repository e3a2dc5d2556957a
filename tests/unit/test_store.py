from __future__ import annotations

import dataclasses
import multiprocessing
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
import sqlalchemy as sa

from mlflow_domino.config import Settings
from mlflow_domino.errors import AlreadyExists, Conflict, DominoError, Unsupported
from mlflow_domino.home import Home
from mlflow_domino.models import (
    Artifact,
    Endpoint,
    FileSource,
    Operation,
    RegistrySource,
    Status,
    Target,
    Token,
    Version,
    new_id,
)
from mlflow_domino.store import SCHEMA_VERSION, Records, SqliteRecords


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return SqliteRecords(Home(tmp_path))


def an_endpoint(name: str = "iris") -> Endpoint:
    return Endpoint(new_id(), name, "local", 1, settings=Settings(exclude_files=("a", "b"), replicas=3))


def a_version(endpoint: Endpoint, number: int = 1) -> Version:
    source = RegistrySource("models:/iris@x", "models:/iris/3", "d" * 64, name="iris", version="3", flavor="sklearn")
    artifact = Artifact("e", "l", "h", "3.11.7", notes=("a note",))
    return Version(
        new_id(), endpoint.id, number, 5, source, endpoint.settings, Status.RUNNING, "", Target.RUNNING, 2, artifact
    )


def test_records_come_back_as_they_were_written(records: Records) -> None:
    endpoint = records.save_endpoint(an_endpoint())
    version = records.save_version(a_version(endpoint))
    project = dataclasses.replace(
        a_version(endpoint, 2), source=FileSource("./p", "model.py", "predict", "d", dirty=("x",)), artifact=None
    )
    project = records.save_version(project)
    assert records.endpoints() == [endpoint]
    assert records.versions(endpoint.id) == [version, project]
    assert records.versions() == [version, project]


def test_a_name_is_taken_once(records: Records) -> None:
    records.save_endpoint(an_endpoint())
    with pytest.raises(AlreadyExists, match="iris"):
        records.save_endpoint(an_endpoint())


def test_the_second_of_two_writers_is_told_so_and_loses_nothing_of_the_first(records: Records) -> None:
    first = records.save_endpoint(an_endpoint())
    records.save_endpoint(dataclasses.replace(first, latest="a" * 24))
    with pytest.raises(Conflict, match="Somebody else changed"):
        records.save_endpoint(dataclasses.replace(first, latest="b" * 24))
    assert records.endpoints()[0].latest == "a" * 24


def test_removing_an_endpoint_removes_all_that_is_its_and_may_be_repeated(records: Records) -> None:
    endpoint = records.save_endpoint(an_endpoint())
    records.save_version(a_version(endpoint))
    records.save_token(Token(new_id(), endpoint.id, "default", "f" * 64, 1))
    records.save_operation(Operation(endpoint.id, "update", "begun", 1, 1))
    records.remove_endpoint(endpoint.id)
    records.remove_endpoint(endpoint.id)
    assert (records.endpoints(), records.versions(), records.tokens(endpoint.id), records.operations()) == (
        [],
        [],
        [],
        [],
    )


def test_a_token_name_is_unique_within_its_endpoint(records: Records) -> None:
    endpoint = records.save_endpoint(an_endpoint())
    records.save_token(Token(new_id(), endpoint.id, "default", "f" * 64, 1))
    with pytest.raises(AlreadyExists, match="default"):
        records.save_token(Token(new_id(), endpoint.id, "default", "e" * 64, 2))


def test_an_endpoint_has_one_operation_at_most(records: Records) -> None:
    records.save_operation(Operation("a" * 24, "update", "begun", 1, 1))
    records.save_operation(Operation("a" * 24, "delete", "begun", 2, 2))
    assert [o.verb for o in records.operations()] == ["delete"]
    records.remove_operation("a" * 24)
    assert records.operations() == []


def test_an_older_release_refuses_records_of_a_newer_one(tmp_path: Path) -> None:
    SqliteRecords(Home(tmp_path), schema_version=SCHEMA_VERSION + 1)
    with pytest.raises(Unsupported, match="newer release"):
        SqliteRecords(Home(tmp_path))


def test_a_newer_release_migrates_the_records_of_an_older_one(tmp_path: Path) -> None:
    endpoint = SqliteRecords(Home(tmp_path)).save_endpoint(an_endpoint())

    def rename(connection: sa.Connection) -> None:
        connection.execute(sa.text("UPDATE endpoints SET name = 'renamed'"))

    newer = SqliteRecords(Home(tmp_path), schema_version=SCHEMA_VERSION + 1, migrations={SCHEMA_VERSION: rename})
    assert newer.endpoints()[0].id == endpoint.id
    with pytest.raises(AlreadyExists):
        newer.save_endpoint(an_endpoint("renamed"))


def test_settings_that_another_release_wrote_do_not_disturb(tmp_path: Path) -> None:
    records = SqliteRecords(Home(tmp_path))
    endpoint = records.save_endpoint(an_endpoint())
    engine = sa.create_engine(f"sqlite:///{tmp_path}/domino.db", poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE endpoints SET document = json_set(document, '$.settings.later', 1, '$.later', 2)")
        )
    assert records.endpoints() == [endpoint]


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "domino.db").write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(DominoError, match=r"domino\.db cannot be used"):
        SqliteRecords(Home(tmp_path))


def test_the_file_of_records_is_closed_to_others(tmp_path: Path) -> None:
    SqliteRecords(Home(tmp_path))
    assert (tmp_path / "domino.db").stat().st_mode & 0o777 == 0o600


def opened(root: Path, together: Barrier) -> None:
    together.wait()
    SqliteRecords(Home(root))


def test_a_new_file_may_be_opened_by_several_commands_at_once(tmp_path: Path) -> None:
    spawning = multiprocessing.get_context("spawn")
    together = spawning.Barrier(4)
    commands = [spawning.Process(target=opened, args=(tmp_path, together)) for _ in range(4)]
    for command in commands:
        command.start()
    for command in commands:
        command.join()
    assert [command.exitcode for command in commands] == [0, 0, 0, 0]


def test_a_migration_that_fails_leaves_everything_as_it_was(tmp_path: Path) -> None:
    home = Home(tmp_path)
    SqliteRecords(home).save_endpoint(an_endpoint())

    def half(connection: sa.Connection) -> None:
        connection.execute(sa.text("ALTER TABLE endpoints ADD COLUMN colour TEXT"))
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        SqliteRecords(home, schema_version=SCHEMA_VERSION + 1, migrations={SCHEMA_VERSION: half})
    with SqliteRecords(home)._engine.connect() as connection:
        assert "colour" not in {column["name"] for column in sa.inspect(connection).get_columns("endpoints")}


@pytest.mark.parametrize("damage", ["substr(document, 1, 40)", "json_remove(document, '$.settings')", "'[]'"])
def test_a_damaged_record_is_said_with_its_file(tmp_path: Path, damage: str) -> None:
    records = SqliteRecords(Home(tmp_path))
    records.save_endpoint(an_endpoint())
    with records._begin() as connection:
        connection.execute(sa.text(f"UPDATE endpoints SET document = {damage}"))
    with pytest.raises(DominoError, match=r"domino\.db cannot be used: a record in it is damaged"):
        records.endpoints()
