"""One load of the model for all workers of a replica, and what becomes of models that cannot be shared."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from sklearn.datasets import load_breast_cancer

from tests.replica import Replica, poll, serving
from tests.saved import ROW, save

SHARED = "the model is loaded, for all workers"
WARM = {"files": {"warm.json": '{"data": {}}'}, "warmup_file": "warm.json"}
#: Where there are more cores than workers, native libraries would have threads, and nothing is shared.
ONE_EACH = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "NUMEXPR_NUM_THREADS",
     "VECLIB_MAXIMUM_THREADS", "RAYON_NUM_THREADS", "POLARS_MAX_THREADS"), "1",
)  # fmt: skip


@pytest.fixture(scope="module")
def iris(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("columns", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that wants more native threads than a worker has."""
    import mlflow
    from lightgbm import LGBMClassifier

    frame, labels = load_breast_cancer(as_frame=True, return_X_y=True)
    model = LGBMClassifier(n_estimators=50, n_jobs=4, verbose=-1).fit(frame, labels)
    path = tmp_path_factory.mktemp("trees") / "model"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.lightgbm.save_model(model, path, input_example=frame[:2], pip_requirements=["mlflow", "lightgbm"])
    return path


def loads(replica: Replica) -> int:
    return (replica.source / "loads").read_text().count("x")


def workers_of(replica: Replica) -> list[psutil.Process]:
    _first, master, *workers = replica.family()
    assert all(worker.ppid() == master.pid for worker in workers)
    return workers


def restarts(replica: Replica) -> float:
    return sum(v for k, v in replica.metrics().items() if k.startswith("domino_worker_restarts"))


def test_workers_share_a_registered_model_that_was_loaded_once(iris: Path) -> None:
    with serving(model=iris, workers=3, variables=ONE_EACH) as replica:
        assert replica.log.count(SHARED) == 1
        assert replica.log.count("warm after") == 3
        assert replica.status["notes"] == []
        with ThreadPoolExecutor(6) as pool:
            assert [a.result for a in pool.map(lambda _: replica.post({"data": ROW}), range(30))] == [[0]] * 30
        _first, master, *workers = (process.memory_full_info() for process in replica.family())
        assert sum(worker.uss for worker in workers) < master.rss / 2


def test_a_shared_model_answers_joined_requests_and_its_workers_are_recycled(iris: Path) -> None:
    with serving(
        model=iris, workers=2, variables=ONE_EACH, max_batch_size=16, worker_max_requests=100
    ) as replica, ThreadPoolExecutor(12) as pool:  # fmt: skip
        while restarts(replica) < 3:
            assert {a.status for a in pool.map(lambda _: replica.post({"data": ROW}), range(100))} == {200}
        assert replica.log.count(SHARED) == 1
        assert replica.metrics()["domino_batch_rows_count"] > 0


def test_a_model_that_wants_native_threads_answers_all_the_same(trees: Path) -> None:
    row = load_breast_cancer(as_frame=True).data.iloc[0].to_dict()
    with serving(model=trees, workers=2, variables=ONE_EACH) as replica, ThreadPoolExecutor(4) as pool:
        assert {a.status for a in pool.map(lambda _: replica.post({"data": row}), range(40))} == {200}


@pytest.mark.parametrize(
    ("settings", "variables"),
    [({"preload": "never"}, {}), ({}, {"OMP_NUM_THREADS": "2"}), ({"workers": 1}, {})],
)
def test_models_are_not_shared_where_that_is_not_asked_for_or_not_safe(
    iris: Path, settings: dict[str, object], variables: dict[str, str]
) -> None:
    with serving(model=iris, **{"workers": 2, "variables": {**ONE_EACH, **variables}, **settings}) as replica:
        assert SHARED not in replica.log
        assert replica.status["notes"] == []


def test_a_project_is_shared_only_where_that_is_asked_for() -> None:
    for preload, times in (("auto", 2), ("always", 1)):
        with serving("draws_numbers", workers=2, preload=preload, variables=ONE_EACH) as replica:
            assert loads(replica) == times


def test_a_variable_that_forbids_what_is_asked_for_is_named() -> None:
    with serving("draws_numbers", workers=2, preload="always", variables={"MKL_NUM_THREADS": "3"}) as replica:
        assert any("MKL_NUM_THREADS=3" in note for note in replica.status["notes"])
        assert loads(replica) == 2


def test_processes_that_were_forked_draw_different_numbers() -> None:
    with serving("draws_numbers", workers=2, preload="always", worker_max_requests=5) as replica:
        first = {}
        while len(first) < 4:
            pid, drawn = replica.call()
            first.setdefault(pid, tuple(drawn))
        assert len(set(first.values())) == len(first)
        for same_generator in zip(*first.values(), strict=True):
            assert len(set(same_generator)) == len(first)
        assert loads(replica) == 1


@pytest.mark.parametrize(
    ("project", "words"),
    [
        ("hangs_after_a_fork", "did not get warm in time"),
        ("dies_after_a_fork", "SIGSEGV"),
        ("raises_after_a_fork", "cannot be used in a forked process"),
    ],
)
def test_workers_load_the_model_themselves_where_it_does_not_survive_the_fork(project: str, words: str) -> None:
    with serving(project, workers=2, preload="always", start_timeout_s=8, **WARM) as replica:
        assert any("each worker loads the model for itself" in n and words in n for n in replica.status["notes"])
        assert replica.call() in {worker.pid for worker in workers_of(replica)}
        assert replica.log.count("warm after") == 2
        if project == "hangs_after_a_fork":
            assert loads(replica) == 3
            assert "hangs_after_a_fork.py" in replica.log  # where it hung


@pytest.mark.parametrize(
    ("keeps", "words"), [("thr", "1 thread"), ("sock", "socket:"), ("file", "/notes open"), ("proc", "a process")]
)
def test_what_a_fork_would_break_is_found_after_the_load(keeps: str, words: str) -> None:
    with serving("cannot_be_shared", workers=2, preload="always", variables={"KEEPS": keeps}) as replica:
        assert any(words in note for note in replica.status["notes"])
        assert SHARED not in replica.log
        assert len([p for p in replica.family() if p.name() == "sleep"]) == (2 if keeps == "proc" else 0)


def test_a_load_that_dies_in_the_master_is_tried_again_in_each_worker() -> None:
    with serving("dies_in_the_first_process_only", workers=2, preload="always") as replica:
        assert any("SIGABRT" in note for note in replica.status["notes"])
        assert replica.call()


def test_metrics_of_a_shared_model_add_up() -> None:
    with serving("counts_in_a_metric", workers=2, preload="always") as replica, ThreadPoolExecutor(4) as pool:
        pids = {a.result for a in pool.map(lambda _: replica.post({"data": {"seconds": 0.1}}), range(10))}
        assert len(pids) == 2
        os.kill(pids.pop(), signal.SIGKILL)
        poll(lambda: restarts(replica) == 1)
        assert {a.status for a in pool.map(lambda _: replica.post({"data": {}}), range(10))} == {200}
        assert replica.metrics()["my_calls_total"] == 120


@pytest.mark.parametrize("preload", ["never", "always"])
def test_a_replica_that_is_told_to_end_while_it_loads_does(preload: str) -> None:
    with Replica("hangs_while_loading", preload=preload) as replica:
        poll(lambda: replica.status.get("state") == "loading")
        replica.end(signal.SIGTERM)
        assert replica.status["state"] == "loading"


@pytest.mark.parametrize("preload", ["never", "always"])
def test_a_replica_ends_with_uwsgis_master(preload: str) -> None:
    with serving("sleeps", workers=2, preload=preload) as replica:
        first, master, *workers = replica.family()
        master.kill()
        assert replica.process is not None
        assert replica.process.wait(5) == 128 + signal.SIGKILL
        _gone, left = psutil.wait_procs([first, *workers], timeout=3)
        assert not left


@pytest.fixture(scope="module")
def shared() -> Iterator[Replica]:
    with serving("sleeps", workers=2, preload="always", request_timeout_s=1) as replica:
        yield replica


def test_a_forked_worker_is_replaced_when_it_is_killed_or_overdue(shared: Replica) -> None:
    os.kill(shared.call(), signal.SIGKILL)
    poll(lambda: restarts(shared) == 1)
    with ThreadPoolExecutor(1) as pool:
        overdue = pool.submit(shared.post, {"data": {"seconds": 30}})
        poll(lambda: shared.in_flight == 1)
        assert overdue.result().status == 504
    poll(lambda: restarts(shared) == 2)
    assert shared.log.count(SHARED) == 1
    assert shared.call()
