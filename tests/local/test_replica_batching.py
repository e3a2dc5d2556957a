"""Joined requests under real uWSGI."""

from __future__ import annotations

import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cloudpickle
import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema, TensorSpec

from tests.replica import Answer, Replica, poll, serving
from tests.saved import save

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MLflow's own type hints warn about themselves
    import mlflow.pyfunc

cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Tagged(mlflow.pyfunc.PythonModel):
    """Answers each row with its own tag; refuses negative numbers; sleeps for the longest of the wishes."""

    def predict(self, context, model_input, params=None):
        if (model_input["x"] < 0).any():
            raise ValueError("a negative number")
        time.sleep(float(model_input["sleep"].max()))
        times = (params or {}).get("times", 1)
        return pd.DataFrame({"tag": model_input["tag"], "value": model_input["x"] * times})


class Centred(mlflow.pyfunc.PythonModel):
    """Its answer for a row depends on the other rows."""

    def predict(self, context, model_input, params=None):
        return model_input["x"] - model_input["x"].mean()


class Doubles(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return model_input * 2


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    columns = Schema([ColSpec("string", "tag"), ColSpec("double", "x"), ColSpec("double", "sleep")])
    params = mlflow.types.ParamSchema([mlflow.types.ParamSpec("times", "long", 1)])
    tensor = Schema([TensorSpec(np.dtype("float32"), (-1, 2))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"pip_requirements": ["mlflow"]}
        signature = ModelSignature(columns, params=params)
        mlflow.pyfunc.save_model(folder / "tagged", python_model=Tagged(), signature=signature, **options)
        two = pd.DataFrame({"x": [1.0, 5.0]})
        signature = ModelSignature(Schema([ColSpec("double", "x")]))
        mlflow.pyfunc.save_model(
            folder / "centred", python_model=Centred(), signature=signature, input_example=two, **options
        )
        mlflow.pyfunc.save_model(folder / "tensor", python_model=Doubles(), signature=ModelSignature(tensor), **options)
    save("bare", folder)
    save("hinted", folder)
    save("columns", folder)
    return folder


@pytest.fixture(scope="module")
def tagged(models: Path) -> Iterator[Replica]:
    with serving(model=models / "tagged", workers=2, max_batch_size=16) as replica:
        yield replica


def ask(replica: Replica, tag: str, x: Any, sleep: float = 0.0, **more: Any) -> Answer:
    return replica.post({"data": {"tag": tag, "x": x, "sleep": sleep}, **more})


def test_good_and_bad_requests_mixed_get_each_his_own_answer(tagged: Replica) -> None:
    def one(n: int) -> None:
        kind = kinds[n]
        if kind == "good":
            (answer,) = ask(tagged, f"t{n}", n / 7).result
            assert (answer["tag"], answer["value"]) == (f"t{n}", n / 7)
        elif kind == "params":
            (answer,) = ask(tagged, f"t{n}", n / 7, params={"times": 3}).result
            assert (answer["tag"], answer["value"]) == (f"t{n}", n / 7 * 3)
        elif kind == "many":
            body = {"inputs": {"tag": [f"t{n}", f"u{n}"], "x": [n, n + 0.5], "sleep": [0, 0]}}
            rows = tagged.post(body, "/invocations").json["predictions"]
            assert [(r["tag"], r["value"]) for r in rows] == [(f"t{n}", n), (f"u{n}", n + 0.5)]
        elif kind == "misfit":
            assert ask(tagged, f"t{n}", f"no number {n}").message.count(f"no number {n}") == 1
        elif kind == "guilty":
            assert ask(tagged, f"t{n}", -1.0).status == 500
        else:
            assert tagged.post({"data": {"tag": "t"}}, token="x" * 64).status == 401

    kinds = ["good"] * 300 + ["params"] * 60 + ["many"] * 60 + ["misfit"] * 60 + ["guilty"] * 20 + ["stranger"] * 20
    random.Random(7).shuffle(kinds)
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(one, range(len(kinds))))
    poll(lambda: tagged.metrics()["domino_requests_in_flight"] == 1)  # the scrape itself
    found = tagged.metrics()
    assert found["domino_batch_rows_count"] > 0
    assert found["domino_batch_rows_sum"] > found["domino_batch_rows_count"]
    assert found["domino_batch_wait_seconds_count"] > 0
    assert found["domino_batch_splits_total"] > 0


def test_concurrent_requests_are_in_fact_joined(models: Path) -> None:
    with serving(model=models / "tagged", max_batch_size=16) as replica, ThreadPoolExecutor(9) as pool:
        first = pool.submit(ask, replica, "first", 1.0, 0.5)
        poll(lambda: replica.in_flight == 1)
        others = [pool.submit(ask, replica, f"t{n}", float(n)) for n in range(8)]
        assert [other.result().status for other in (first, *others)] == [200] * 9
        found = replica.metrics()
        assert found["domino_batch_rows_sum"] >= 2 * found["domino_batch_rows_count"] > 0


@pytest.mark.parametrize("threads", [1, 4])
def test_a_draining_replica_answers_everything_that_it_accepted(models: Path, threads: int) -> None:
    with (
        serving(model=models / "tagged", max_batch_size=8, threads=threads, workers=2) as replica,
        ThreadPoolExecutor(24) as pool,
    ):
        sent = [pool.submit(ask, replica, f"t{n}", float(n), 0.4) for n in range(6)]
        poll(lambda: replica.in_flight >= 2)
        accepted = replica.in_flight
        replica.end(signal.SIGTERM)
        answers = [s.result().status for s in sent if s.exception() is None]
        assert len(answers) >= accepted
        assert set(answers) == {200}


@pytest.mark.parametrize("threads", [1, 4])
def test_recycling_by_count_fails_no_joined_request(models: Path, threads: int) -> None:
    with serving(
        model=models / "tagged", max_batch_size=16, workers=2, threads=threads, worker_max_requests=150
    ) as replica:
        failed: list[Any] = []
        stop = threading.Event()

        def caller(name: str) -> None:
            n = 0
            while not stop.is_set():
                n += 1
                try:
                    (answer,) = ask(replica, f"{name}-{n}", float(n)).result
                    assert (answer["tag"], answer["value"]) == (f"{name}-{n}", float(n))
                except Exception as error:
                    failed.append(error)

        callers = [threading.Thread(target=caller, args=(f"c{n}",)) for n in range(12)]
        for thread in callers:
            thread.start()
        try:
            poll(
                lambda: sum(v for k, v in replica.metrics().items() if "worker_restarts" in k) >= 2,
                within=30,
                every=0.3,
            )
        finally:
            stop.set()
            for thread in callers:
                thread.join()
        assert not failed


def test_an_overdue_batch_is_given_up_and_the_replica_goes_on(models: Path) -> None:
    with serving(model=models / "tagged", max_batch_size=8, workers=2, request_timeout_s=1) as replica:
        with ThreadPoolExecutor(4) as pool:
            assert [a.status for a in pool.map(lambda n: ask(replica, f"t{n}", 1.0, 30.0), range(4))] == [504] * 4
        poll(lambda: replica.in_flight == 0)
        assert ask(replica, "after", 1.0).status == 200


def test_tensors_join(models: Path) -> None:
    with serving(model=models / "tensor", max_batch_size=16) as replica, ThreadPoolExecutor(16) as pool:
        answers = pool.map(lambda n: replica.post({"data": {"inputs": [[n, n + 0.5]] * (n % 3 + 1)}}), range(100))
        assert [a.result for a in answers] == [[[2.0 * n, 2.0 * n + 1]] * (n % 3 + 1) for n in range(100)]


def test_a_model_whose_rows_are_not_independent_is_not_joined_and_says_so(models: Path) -> None:
    with serving(model=models / "centred", max_batch_size=16) as replica, ThreadPoolExecutor(16) as pool:
        assert any("requests are not joined" in note for note in replica.status["notes"])
        answers = pool.map(lambda n: replica.post({"data": {"x": float(n)}}), range(60))
        assert [a.result for a in answers] == [[{"x": 0.0}]] * 60
        assert replica.metrics()["domino_batch_rows_count"] == 0


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("bare", {}, "the model has no signature"),
        ("hinted", {}, "came from a type hint"),
        ("columns", {"strict_schema": False}, "strict_schema=false"),
    ],
)
def test_models_that_cannot_be_joined_are_refused_with_the_reason(
    models: Path, kind: str, settings: dict[str, Any], words: str
) -> None:
    with Replica(model=models / kind, max_batch_size=8, **settings) as replica:
        poll(lambda: replica.status.get("state") == "failed", within=60)
        assert words in replica.status["reason"]
        assert "max_batch_size=8" in replica.status["reason"]


def test_functions_of_projects_are_refused_too() -> None:
    with Replica("adds", max_batch_size=8) as replica:
        poll(lambda: replica.status.get("state") == "failed", within=30)
        assert "cannot be joined" in replica.status["reason"]
