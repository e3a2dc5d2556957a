from __future__ import annotations

import multiprocessing
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
import sqlalchemy as sa

from mlflow_domino.errors import AlreadyExists, DominoError, Unsupported
from mlflow_domino.home import Home
from mlflow_domino.store import SCHEMA_VERSION, Records, SqliteRecords
from tests.records import RecordsContract, an_endpoint


class TestSqliteRecords(RecordsContract):
    @pytest.fixture
    def records(self, tmp_path: Path) -> Records:
        return SqliteRecords(Home(tmp_path))

    @pytest.fixture
    def others(self, tmp_path: Path) -> Records:
        return SqliteRecords(Home(tmp_path))


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
