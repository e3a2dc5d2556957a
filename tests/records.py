"""What every place for records must do."""

from __future__ import annotations

import dataclasses
import threading

import pytest

from mlflow_domino.config import Secrets, Settings
from mlflow_domino.errors import AlreadyExists, Conflict
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
from mlflow_domino.store import Records
from tests.conftest import eventually


def an_endpoint(name: str = "iris") -> Endpoint:
    return Endpoint(new_id(), name, "local", 1, settings=Settings(exclude_files=("a", "b"), replicas=3))


def a_version(endpoint: Endpoint, number: int = 1) -> Version:
    source = RegistrySource("models:/iris@x", "models:/iris/3", "d" * 64, name="iris", version="3", flavor="sklearn")
    artifact = Artifact("e", "l", "h", "3.11.7", notes=("a note",))
    return Version(
        new_id(), endpoint.id, number, 5, source, endpoint.settings, Status.RUNNING, "", Target.RUNNING, 2, artifact
    )


def a_token(endpoint: Endpoint, name: str = "default", created_ms: int = 1) -> Token:
    return Token(new_id(), endpoint.id, name, "f" * 64, created_ms)


class RecordsContract:
    """Give a subclass a fixture `records`, empty, of a data plane named ``local``; and `others`, the same place again."""

    def test_records_come_back_as_they_were_written(self, records: Records) -> None:
        endpoint = records.save_endpoint(an_endpoint())
        version = records.save_version(a_version(endpoint))
        project = dataclasses.replace(
            a_version(endpoint, 2), source=FileSource("./p", "model.py", "predict", "d", dirty=("x",)), artifact=None
        )
        project = records.save_version(project)
        assert records.endpoints() == [endpoint]
        assert records.versions(endpoint.id) == [version, project]
        assert records.versions() == [version, project]

    def test_another_command_sees_the_same(self, records: Records, others: Records) -> None:
        endpoint = records.save_endpoint(an_endpoint())
        version = others.save_version(a_version(endpoint))
        assert others.endpoints() == [endpoint]
        assert records.versions() == [version]

    def test_endpoints_come_by_name_and_versions_by_number(self, records: Records) -> None:
        b, a = (records.save_endpoint(an_endpoint(name)) for name in ("b", "a"))
        for number in (10, 9, 1):
            records.save_version(a_version(a, number))
        records.save_version(a_version(b))
        assert [e.name for e in records.endpoints()] == ["a", "b"]
        assert [v.number for v in records.versions(a.id)] == [1, 9, 10]
        assert len(records.versions()) == 4

    def test_a_name_is_taken_once(self, records: Records) -> None:
        first = records.save_endpoint(an_endpoint())
        with pytest.raises(AlreadyExists, match="iris"):
            records.save_endpoint(an_endpoint())
        assert records.endpoints() == [first]

    def test_of_many_commands_that_want_one_name_one_gets_it(self, records: Records, others: Records) -> None:
        together, made = threading.Barrier(4), []

        def create(here: Records) -> None:
            together.wait()
            try:
                made.append(here.save_endpoint(an_endpoint()))
            except AlreadyExists:
                made.append(None)

        threads = [threading.Thread(target=create, args=(here,)) for here in (records, others) * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [e for e in made if e is not None] == records.endpoints()
        assert len(made) == 4
        assert len(records.endpoints()) == 1

    def test_a_name_is_free_again_when_its_endpoint_is_gone(self, records: Records) -> None:
        records.remove_endpoint(records.save_endpoint(an_endpoint()).id)
        second = records.save_endpoint(an_endpoint())
        assert records.endpoints() == [second]

    def test_the_second_of_two_writers_is_told_so_and_loses_nothing_of_the_first(self, records: Records) -> None:
        first = records.save_endpoint(an_endpoint())
        records.save_endpoint(dataclasses.replace(first, latest="a" * 24))
        with pytest.raises(Conflict, match="Somebody else changed"):
            records.save_endpoint(dataclasses.replace(first, latest="b" * 24))
        assert records.endpoints()[0].latest == "a" * 24

    def test_the_second_of_two_writers_of_a_version_is_told_so(self, records: Records, others: Records) -> None:
        version = records.save_version(a_version(records.save_endpoint(an_endpoint())))
        others.save_version(dataclasses.replace(version, status=Status.STOPPED))
        with pytest.raises(Conflict, match="Somebody else changed version 1"):
            records.save_version(dataclasses.replace(version, status=Status.FAILED))
        assert records.versions()[0].status is Status.STOPPED

    def test_whoever_writes_on_writes_over_the_own_change(self, records: Records) -> None:
        endpoint = records.save_endpoint(an_endpoint())
        for latest in ("a" * 24, "b" * 24, "a" * 24):
            endpoint = records.save_endpoint(dataclasses.replace(endpoint, latest=latest))
        assert records.endpoints() == [endpoint]

    def test_what_was_removed_meanwhile_does_not_come_back(self, records: Records, others: Records) -> None:
        endpoint = records.save_endpoint(an_endpoint())
        version = records.save_version(a_version(endpoint))
        others.remove_version(version.id)
        with pytest.raises(Conflict):
            records.save_version(dataclasses.replace(version, status=Status.STOPPED))
        others.remove_endpoint(endpoint.id)
        with pytest.raises(Conflict):
            records.save_endpoint(dataclasses.replace(endpoint, latest="a" * 24))
        assert (records.endpoints(), records.versions()) == ([], [])

    def test_the_number_of_a_version_is_unique_within_its_endpoint(self, records: Records) -> None:
        endpoint, another = records.save_endpoint(an_endpoint()), records.save_endpoint(an_endpoint("b"))
        first = records.save_version(a_version(endpoint))
        with pytest.raises(AlreadyExists, match="Version 1"):
            records.save_version(a_version(endpoint))
        assert records.versions(endpoint.id) == [first]
        records.save_version(a_version(another))

    def test_removing_an_endpoint_removes_all_that_is_its_and_may_be_repeated(self, records: Records) -> None:
        endpoint, another = records.save_endpoint(an_endpoint()), records.save_endpoint(an_endpoint("b"))
        kept = records.save_version(a_version(another))
        records.save_version(a_version(endpoint))
        records.save_token(a_token(endpoint))
        records.save_operation(Operation(endpoint.id, "update", "begun", 1, 1))
        records.remove_endpoint(endpoint.id)
        records.remove_endpoint(endpoint.id)
        assert (records.endpoints(), records.versions()) == ([another], [kept])
        assert (records.tokens(endpoint.id), records.operations()) == ([], [])

    def test_removing_what_is_not_there_is_no_error(self, records: Records) -> None:
        records.remove_endpoint(new_id())
        records.remove_version(new_id())
        records.remove_token(new_id())
        records.remove_operation(new_id())
        records.forget_lock(new_id())

    def test_a_token_name_is_unique_within_its_endpoint(self, records: Records) -> None:
        endpoint = records.save_endpoint(an_endpoint())
        first = a_token(endpoint)
        records.save_token(first)
        with pytest.raises(AlreadyExists, match="default"):
            records.save_token(a_token(endpoint))
        assert records.tokens(endpoint.id) == [first]

    def test_tokens_come_oldest_first_and_go_one_by_one(self, records: Records) -> None:
        endpoint, another = records.save_endpoint(an_endpoint()), records.save_endpoint(an_endpoint("b"))
        tokens = [a_token(endpoint, name, at) for name, at in (("c", 3), ("a", 1), ("b", 2))]
        for token in [*tokens, a_token(another)]:
            records.save_token(token)
        assert [t.name for t in records.tokens(endpoint.id)] == ["a", "b", "c"]
        records.remove_token(tokens[1].id)
        assert [t.name for t in records.tokens(endpoint.id)] == ["b", "c"]
        assert len(records.tokens(another.id)) == 1

    def test_tokens_of_two_writers_at_once_are_both_kept(self, records: Records, others: Records) -> None:
        endpoint = records.save_endpoint(an_endpoint())
        together = threading.Barrier(4)

        def add(here: Records, name: str) -> None:
            together.wait()
            here.save_token(a_token(endpoint, name))

        threads = [threading.Thread(target=add, args=(here, f"t{n}")) for n, here in enumerate((records, others) * 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(t.name for t in records.tokens(endpoint.id)) == ["t0", "t1", "t2", "t3"]

    def test_an_endpoint_has_one_operation_at_most(self, records: Records) -> None:
        records.save_operation(Operation("a" * 24, "update", "begun", 1, 1))
        records.save_operation(Operation("a" * 24, "delete", "begun", 2, 2))
        assert [o.verb for o in records.operations()] == ["delete"]
        records.remove_operation("a" * 24)
        assert records.operations() == []

    def test_secrets_come_back_and_none_are_none(self, records: Records) -> None:
        endpoint = records.save_endpoint(an_endpoint())
        version = records.save_version(a_version(endpoint))
        wanted = Secrets({"NAME": "väl\n\udcffue"}, "https://u:p@index.example/simple", ("https://b.example/simple",))
        assert records.secrets(endpoint) == records.secrets(version) == Secrets()
        records.save_secrets(version, wanted)
        records.save_secrets(endpoint, Secrets({"A": "1", "B": "2"}))
        records.save_secrets(endpoint, Secrets({"A": "3"}))
        assert records.secrets(version) == wanted
        assert records.secrets(endpoint) == Secrets({"A": "3"})
        records.save_secrets(endpoint, Secrets())
        assert records.secrets(endpoint) == Secrets()

    def test_a_lock_is_held_by_one(self, records: Records, others: Records) -> None:
        name = new_id()
        with records.lock(name):
            with pytest.raises(Conflict, match=r"^it is busy$"), others.lock(name, wait=False, conflict="it is busy"):
                pass
            with others.lock("another", wait=False):
                pass
        with others.lock(name, wait=False):
            pass

    def test_a_lock_is_free_again_after_a_failure(self, records: Records, others: Records) -> None:
        with pytest.raises(KeyboardInterrupt), records.lock("records"):
            raise KeyboardInterrupt
        with others.lock("records", wait=False):
            pass

    def test_who_waits_for_a_lock_gets_it_when_it_is_free(self, records: Records, others: Records) -> None:
        order = []

        def wait() -> None:
            with others.lock("records"):
                order.append("waiter")

        waiter = threading.Thread(target=wait)
        with records.lock("records"):
            waiter.start()
            with pytest.raises(Conflict), others.lock("records", wait=False):
                pass
            order.append("holder")
        eventually(lambda: len(order) == 2)
        waiter.join()
        assert order == ["holder", "waiter"]

    def test_a_lock_may_be_forgotten_while_it_is_held(self, records: Records, others: Records) -> None:
        with records.lock("a" * 24):
            records.forget_lock("a" * 24)
        with others.lock("a" * 24, wait=False):
            pass
