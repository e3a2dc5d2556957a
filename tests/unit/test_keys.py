"""Tokens that a cluster's gateway takes out of a Secret, for its application and its dispatcher."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mlflow_domino.gateway.keys import Keys
from mlflow_domino.labels import GATEWAY_TOKENS, digests_key
from tests.apiserver import ApiServer, api_server

A, B = "a" * 24, "b" * 24
READ = f"GET /api/v1/namespaces/n/secrets/{GATEWAY_TOKENS}"


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with api_server() as server:
        yield server


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def keys(server: ApiServer, tmp_path: Path, said: list[str]) -> Iterator[Keys]:
    cluster = server.cluster(tmp_path)
    yield Keys(cluster, tmp_path / "tokens", said.append)
    cluster.close()


def files(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "tokens").iterdir()}


def test_each_endpoint_has_a_file_that_is_closed_to_others(server: ApiServer, keys: Keys) -> None:
    server.put_secret(GATEWAY_TOKENS, {A: "token-a", digests_key(A): "{}", B: "token-b"})
    assert keys.fetch({A, B}, {A}, 7)
    assert (keys.own(A).read_text(), keys.own(B).read_text(), keys.callers(A).read_text()) == (
        "token-a",
        "token-b",
        "{}",
    )
    assert keys.own(A).stat().st_mode & 0o777 == 0o600
    assert keys.current(7)
    assert not keys.current(8)


def test_what_is_known_is_not_asked_for_again_but_for_callers_of_a_newer_generation(
    server: ApiServer, keys: Keys
) -> None:
    server.put_secret(GATEWAY_TOKENS, {A: "token", digests_key(A): "old"})
    assert keys.fetch({A}, {A}, 1)
    assert keys.fetch({A}, {A}, 1)
    assert server.asked == [READ]
    server.put_secret(GATEWAY_TOKENS, {A: "token", digests_key(A): "new"})
    assert keys.fetch({A}, {A}, 2)
    assert keys.callers(A).read_text() == "new"


def test_an_endpoint_without_a_token_yet_is_waited_for_and_the_others_have_theirs(
    server: ApiServer, keys: Keys
) -> None:
    server.put_secret(GATEWAY_TOKENS, {A: "token-a"})
    assert not keys.fetch({A, B}, set(), 1)
    assert keys.own(A).read_text() == "token-a"
    server.put_secret(GATEWAY_TOKENS, {A: "token-a", B: "token-b"})
    assert keys.fetch({A, B}, set(), 1)


def test_files_of_endpoints_that_are_gone_go_too(server: ApiServer, keys: Keys, tmp_path: Path) -> None:
    server.put_secret(GATEWAY_TOKENS, {A: "token-a", digests_key(A): "{}", B: "token-b"})
    assert keys.fetch({A, B}, {A}, 1)
    assert keys.fetch({B}, set(), 2)
    assert files(tmp_path) == {B}


def test_a_key_that_somebody_removed_from_the_secret_loses_its_file(
    server: ApiServer, keys: Keys, tmp_path: Path
) -> None:
    server.put_secret(GATEWAY_TOKENS, {A: "token-a", digests_key(A): "{}"})
    assert keys.fetch({A}, {A}, 1)
    server.put_secret(GATEWAY_TOKENS, {A: "token-a"})
    assert not keys.fetch({A}, {A}, 2)
    assert files(tmp_path) == {A}


def test_names_in_the_secret_are_never_paths(server: ApiServer, keys: Keys, tmp_path: Path) -> None:
    server.put_secret(GATEWAY_TOKENS, {"../outside": "x", A: "token-a"})
    assert not keys.fetch({"../outside", A}, set(), 1)
    assert not (tmp_path / "outside").exists()


def test_what_is_no_token_costs_nobody_else_his(server: ApiServer, keys: Keys) -> None:
    server.put_secret(GATEWAY_TOKENS, {A: "gärbage", B: "token-b"})
    assert keys.fetch({A, B}, set(), 1)
    assert (keys.own(A).read_text("ascii"), keys.own(B).read_text("ascii")) == ("grbage", "token-b")


def test_a_secret_that_cannot_be_read_is_said_once_and_what_is_known_stays(
    server: ApiServer, keys: Keys, said: list[str]
) -> None:
    server.put_secret(GATEWAY_TOKENS, {A: "token-a"})
    assert keys.fetch({A}, set(), 1)
    server.silent = True
    assert not keys.fetch({A, B}, set(), 2)
    assert not keys.fetch({A, B}, set(), 3)
    assert len(said) == 1
    assert said[0].startswith("the tokens of endpoints cannot be read: ")
    assert keys.own(A).read_text() == "token-a"
