"""Replicas of MLflow models, under real uWSGI."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest

from tests.replica import Replica, poll, serving
from tests.saved import FEATURES, ROW, save


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def saved(models: Path, kind: str) -> Path:
    return models / kind if (models / kind).exists() else save(kind, models)


@pytest.fixture(scope="module")
def iris(models: Path) -> Iterator[Replica]:
    with serving(model=saved(models, "columns"), workers=2) as replica:
        yield replica


def test_a_registered_model_answers_with_its_release(iris: Replica) -> None:
    document = iris.post({"data": ROW}).json
    assert document["result"] == [0]
    assert document["release"] == {
        "harness_version": "0.1", "model_version": "v" * 24, "model_version_number": 3,
        "registered_model_name": "iris", "registered_model_version": "7",
    }  # fmt: skip
    assert iris.log.count("with serving_input_example.json") == 2


def test_rows_answer_as_pyfunc_does(iris: Replica, models: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = mlflow.pyfunc.load_model(str(models / "columns")).predict(FEATURES).tolist()
    assert iris.post({"data": FEATURES.to_dict("list")}).result == expected
    split = {"dataframe_split": FEATURES.to_dict("split")}
    assert iris.post(split, "/invocations").json == {"predictions": expected}
    csv = FEATURES.to_csv(index=False).encode()
    answer = iris.request("POST", "/invocations", csv, headers={"Content-Type": "text/csv"})
    assert answer.json == {"predictions": expected}
    kind = {"Content-Type": "application/vnd.apache.parquet"}
    assert iris.request("POST", "/invocations", FEATURES.to_parquet(), headers=kind).json == {"predictions": expected}
    wrong = FEATURES.assign(more=1).to_parquet()
    assert "'more'" in iris.request("POST", "/invocations", wrong, headers=kind).message


def test_a_misfit_is_refused_by_row_and_column(iris: Replica) -> None:
    name = FEATURES.columns[0]
    answer = iris.post({"data": {**{c: [1.0, 2.0] for c in FEATURES}, name: [1.0, "x"]}})
    assert answer.status == 400
    assert answer.json["error"]["code"] == "SCHEMA_MISMATCH"
    assert f'column {name!r}, row 1: "x" is not a number' in answer.message


def test_invocations_wants_its_media_types(iris: Replica) -> None:
    for kind in ("text/plain", "application/json; charset=latin-1", "application/json; version=3", ""):
        answer = iris.request("POST", "/invocations", b"{}", headers={"Content-Type": kind})
        assert answer.status == 415, kind


def test_the_schema_is_published(iris: Replica) -> None:
    document = iris.request("GET", "/openapi.json").json
    assert document["info"]["title"] == "test"
    text = json.dumps(document["paths"]["/model"])
    assert all(json.dumps(name) in text for name in FEATURES)
    assert "/invocations" in document["paths"]


@pytest.mark.parametrize(
    ("kind", "body", "result"),
    [
        ("tensor", {"parameters": [[list(ROW.values())] * 2]}, [0, 0]),
        ("tensor", {"data": {"inputs": [list(ROW.values())]}}, [0]),
        ("bare", {"data": ROW}, [0]),
        ("bare", {"data": FEATURES.head(3).to_dict("list")}, [0, 0, 0]),
        ("hinted", {"data": {"role": "u", "content": "a", "times": 2}}, ["u: aa"]),
        ("hinted", {"data": {"inputs": [{"role": "u", "content": "a"}]}}, ["u: a"]),
        (
            "params",
            {"data": {"n": 1, "s": "x", "when": "2026-01-01T00:00:00"}, "params": {"t": 1}},
            {"rows": [{"n": 1, "s": "x", "when": "2026-01-01T00:00:00"}],
             "types": {"n": "int64", "s": "str", "when": "datetime64[ns]"}, "params": {"t": 1.0, "k": [1, 2]}},
        ),
        (
            "nested",
            {"data": {"a": [1, 2.5], "o": {"x": 3}}},
            {"rows": [{"a": [1.0, 2.5], "o": {"x": 3}}], "types": {"a": "object", "o": "object"}, "params": None},
        ),
    ],
)  # fmt: skip
def test_every_kind_of_signature_answers(models: Path, kind: str, body: Any, result: Any) -> None:
    with serving(model=saved(models, kind)) as replica:
        assert replica.post(body).result == result


@pytest.mark.parametrize(
    ("kind", "body", "words"),
    [
        ("params", {"data": {"n": 1.5, "s": "x", "when": "2026-01-01"}, "params": {"q": 1}}, ["'q'", "1.5"]),
        ("hinted", {"data": {"role": "u", "content": 1, "mood": "good"}}, [".content 1", ".mood"]),
        ("hinted", {"data": {"role": "u"}}, ["content"]),
        ("nested", {"data": {"a": [1], "o": {"x": 1, "y": 2}, "maybe": None}}, [".y is not known", "'maybe', row 0"]),
    ],
)
def test_every_kind_of_signature_refuses(models: Path, kind: str, body: Any, words: list[str]) -> None:
    with serving(model=saved(models, kind)) as replica:
        answer = replica.post(body)
        assert answer.status == 400
        assert all(word in answer.message for word in words), answer.message


def test_without_a_strict_schema_mlflow_decides(models: Path) -> None:
    with serving(model=saved(models, "columns"), strict_schema=False) as replica:
        assert replica.post({"data": {**ROW, "more": 1}}).result == [0]
        answer = replica.post({"data": {"more": 1}})
        assert answer.status == 400
        assert "missing inputs" in answer.message


def test_an_exception_of_the_model_is_a_500(models: Path) -> None:
    with serving(model=saved(models, "raises")) as replica:
        answer = replica.post({"data": {"x": 1}})
        assert answer.status == 500
        assert b"cannot predict this" not in answer.body
        assert "ValueError: cannot predict this" in replica.log


def test_an_example_that_the_signature_refuses_is_noted_and_no_reason_to_fail(models: Path) -> None:
    with serving(model=saved(models, "misfit")) as replica:
        assert any("own example does not fit its signature" in note for note in replica.status["notes"])


def test_an_example_that_the_model_cannot_answer_fails_the_start(models: Path) -> None:
    broken = models / "broken"
    shutil.copytree(saved(models, "raises"), broken)
    (broken / "serving_input_example.json").write_text('{"inputs": {"x": [1.0]}}')
    with Replica(model=broken) as replica:
        poll(lambda: replica.status.get("state") == "failed", within=30)
        assert "the warm-up failed" in replica.status["reason"]
        assert "cannot predict this" in replica.status["reason"]


def test_the_example_of_an_older_mlflow_warms_too(models: Path) -> None:
    older = models / "older"
    shutil.copytree(saved(models, "columns"), older)
    (older / "serving_input_example.json").unlink()
    with serving(model=older) as replica:
        assert "with input_example.json" in replica.log


def test_a_directory_that_is_no_model_fails_the_start(tmp_path: Path) -> None:
    with Replica(model=tmp_path) as replica:
        poll(lambda: replica.status.get("state") == "failed", within=30)
        assert "MLmodel" in replica.status["reason"]
