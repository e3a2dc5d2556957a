from __future__ import annotations

import contextlib
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from mlflow_domino.errors import Unavailable, Unsupported
from mlflow_domino.queue.database import Database, sqlite_url
from mlflow_domino.queue.prediction import State, begun_ms, new_prediction_id
from mlflow_domino.queue.schema import meta, metadata
from mlflow_domino.queue.statements import FINISH, LEASE, NEXT, POLL, RENEWED
from tests.conftest import eventually
from tests.postgresql import PostgreSQL, postgresql
from tests.queue import Desk, QueueContract


class TestSqlite(QueueContract):
    @pytest.fixture
    def another(self, tmp_path: Path) -> Callable[[], Database]:
        return lambda: Database(sqlite_url(tmp_path / "predictions.db"))

    @pytest.fixture
    def desk(self, another: Callable[[], Database]) -> Iterator[Desk]:
        database = another()
        yield Desk(database)
        database.close()

    def test_it_is_closed_to_others(self, desk: Desk, tmp_path: Path) -> None:
        desk.submit()
        assert {path.stat().st_mode & 0o077 for path in tmp_path.iterdir()} == {0}

    def test_commits_are_synchronous(self, desk: Desk) -> None:
        def settings(connection: sa.Connection) -> tuple[object, object]:
            return tuple(
                connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")
            )

        assert desk.database.write(settings) == ("wal", 2)

    def test_a_second_dispatcher_waits_for_the_first_one_to_end(self, desk: Desk, tmp_path: Path) -> None:
        code = (
            "import sys; from mlflow_domino.queue.database import Database; d = Database(sys.argv[1]); d.claim();"
            "print('mine', flush=True); sys.stdin.read()"
        )
        argv = [sys.executable, "-c", code, sqlite_url(tmp_path / "predictions.db")]
        with contextlib.ExitStack() as stack:
            first, second = (
                stack.enter_context(subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
                for _ in range(2)
            )
            eventually(lambda: _waits_for_a_lock(first.pid) or _waits_for_a_lock(second.pid))
            if _waits_for_a_lock(first.pid):
                first, second = second, first
            assert first.stdout is not None
            assert first.stdout.readline() == "mine\n"
            first.kill()
            assert second.stdout is not None
            assert second.stdout.readline() == "mine\n"
            second.kill()

    def test_a_full_disk_accepts_nothing_and_loses_nothing(self, desk: Desk) -> None:
        accepted = [desk.submit()]
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        size = max(p.stat().st_size for p in Path(_file(desk)).parent.iterdir())
        previous = _ignore_file_size_signal()
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 8192, hard))
        try:
            with pytest.raises(Unavailable):
                for _ in range(200):
                    accepted.append(desk.submit())
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            previous()
        accepted.append(desk.submit())
        assert {one.id for one in desk.queue.find("e" * 24, limit=1000)} == set(accepted)

    def test_of_a_newer_release_nothing_is_touched(self, another: Callable[[], Database]) -> None:
        database = another()
        database.write(lambda connection: connection.execute(meta.update().values(value="99")))
        database.close()
        with pytest.raises(Unsupported, match="newer release"):
            another()


class TestPostgreSQL(QueueContract):
    @pytest.fixture(scope="class")
    def server(self) -> Iterator[PostgreSQL]:
        server = postgresql()
        yield server
        server.remove()

    @pytest.fixture
    def another(self, server: PostgreSQL) -> Callable[[], Database]:
        return lambda: Database(server.url)

    @pytest.fixture
    def desk(self, another: Callable[[], Database]) -> Iterator[Desk]:
        database = another()
        yield Desk(database)
        database.write(metadata.drop_all)
        database.close()

    def test_a_server_that_comes_back_is_used_again(self, desk: Desk, server: PostgreSQL) -> None:
        first = desk.submit()
        server.stop()
        with pytest.raises(Unavailable):
            desk.submit()
        server.start()
        assert desk.state(first) is State.QUEUED
        desk.submit()

    def test_a_password_is_in_no_message(self, server: PostgreSQL) -> None:
        with pytest.raises(Unavailable) as caught:
            Database("postgresql://domino:geheim@127.0.0.1:1/postgres")
        assert "geheim" not in str(caught.value)


def test_ids_sort_by_time_and_tell_it() -> None:
    ids = [new_prediction_id(ms) for ms in (1, 2, 1 << 41, (1 << 48) - 1)]
    assert ids == sorted(ids)
    assert [begun_ms(one) for one in ids] == [1, 2, 1 << 41, (1 << 48) - 1]
    assert [begun_ms(text) for text in ("", "x" * 36, ids[0].upper() + "A", "0" * 36, ids[0] + "\n")] == [None] * 5


def _waits_for_a_lock(pid: int) -> bool:
    return any("->" in line and f" {pid} " in line for line in Path("/proc/locks").read_text().splitlines())


def _file(desk: Desk) -> str:
    return str(desk.database._file)


def _ignore_file_size_signal() -> Callable[[], object]:
    import signal

    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    return lambda: signal.signal(signal.SIGXFSZ, before)


def test_what_runs_for_each_prediction_walks_an_index_and_sorts_nothing(tmp_path: Path) -> None:
    """Which is why 100,000 that wait make nothing slower; `tests/benchmarks/backlog.py` measures it."""
    statements = {
        POLL: {"of_id": "x", "of_endpoint": "e"},
        NEXT: {"of_endpoint": "e", "most": 5},
        FINISH: dict.fromkeys(
            (
                "of_id",
                "of_fence",
                "of_leased_ms",
                "of_owner",
                "to_state",
                "to_result",
                "to_errors",
                "at_ms",
                "to_due_ms",
            ),
            1,
        ),
        LEASE: dict.fromkeys(("of_id", "of_owner", "of_version", "at_ms"), 1),
        RENEWED: {"of_owner": "o"},
    }
    database = Database(sqlite_url(tmp_path / "predictions.db"))

    def plans(connection: sa.Connection) -> list[str]:
        found = []
        for statement, values in statements.items():
            text, order, known = statement._text(connection.dialect)
            cursor = connection.connection.cursor()
            cursor.execute(f"EXPLAIN QUERY PLAN {text}", [{**known, **values}[name] for name in order or ()])
            found += [str(row[3]) for row in cursor.fetchall()]
        return found

    steps = database.read(plans)
    database.close()
    assert len(steps) == len(statements)
    assert all(step.startswith("SEARCH domino_predictions USING INDEX") for step in steps), steps
