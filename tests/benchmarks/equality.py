"""Joined answers equal unjoined ones: mixed requests, good and bad ones shuffled, each answer known to its caller.

    python -m tests.benchmarks.equality [--requests 20000] [--connections 64] [--kinds tags labels trees linear]

Each request goes to two endpoints, of which one joins. Status and error must be the same, and so must the result: for
tags, labels and trees to the last bit, for linear algebra within 1e-9, since a matrix product's last bits depend on
its size. Tags and linear answers differ from request to request, and errors name a value that is the request's own:
an answer that went to somebody else would show.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.generator import send_all
from tests.benchmarks.measure import scratch
from tests.benchmarks.peers import add_joining, joining
from tests.benchmarks.servers import Domino, Side, domino

_COLUMNS = ("a", "b", "c", "d")


@dataclass(frozen=True)
class Kind:
    """A model, and how requests to it are made.

    Attributes
    ----------
    save : callable
        Saves the model into a folder.
    row : callable
        Makes the cells of a good row, from a tag.
    tolerance : float
        Relative; 0 wants equality.
    """

    save: Callable[[Path], None]
    row: Callable[[int, random.Random], dict[str, Any]]
    tolerance: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=20000, help="of all kinds together")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS])
    parser.add_argument("--seed", type=int, default=1)
    add_joining(parser)
    options = parser.parse_args()
    different = 0
    with scratch() as folder, domino(folder) as ours:
        for name in options.kinds:
            different += _compare(name, ours, folder, options)
    raise SystemExit(1 if different else 0)


def _compare(name: str, ours: Domino, folder: Path, options: argparse.Namespace) -> int:
    kind, path = KINDS[name], folder / name
    kind.save(path)
    plain = ours.deploy_path(f"{name}-plain", path, workers=options.workers)
    joined = ours.deploy_path(f"{name}-joined", path, workers=options.workers, **joining(options))
    chance = random.Random(options.seed)
    bodies = [_body(kind, tag, chance) for tag in range(1, options.requests // len(options.kinds) + 1)]
    wanted = _answers(plain, bodies, 8)
    got = _answers(joined, bodies, options.connections)
    different = [tag for tag in range(len(bodies)) if not _same(wanted[tag], got[tag], kind.tolerance)]
    for tag in different[:5]:
        print(f"  {json.dumps(bodies[tag])}\n    alone:  {wanted[tag]}\n    joined: {got[tag]}")
    statuses = ", ".join(f"{n} x {status}" for status, n in sorted(Counter(a[0] for a in wanted).items()))
    sizes = f"joined into batches of {_mean_batch(ours, joined):.1f} on average"
    print(f"{name:8} {len(bodies)} requests ({statuses}), {sizes}: {len(different)} different", flush=True)
    for endpoint in (f"{name}-plain", f"{name}-joined"):
        ours.controller.delete(endpoint)
    return len(different)


def _answers(side: Side, bodies: Sequence[Any], connections: int) -> list[tuple[str, Any]]:
    """Return the status, and the result or the error without its request_id, of each request."""
    answers: list[tuple[str, Any]] = [("none", None)] * len(bodies)

    def answered(tag: int, status: str, answer: bytes) -> None:
        assert answers[tag][0] == "none", "a request was answered twice"
        document = json.loads(answer.partition(b"\r\n\r\n")[2])
        error = document.get("error", {})
        answers[tag] = (status, document["result"] if status == "200" else (error["code"], error["message"]))

    order = list(range(len(bodies)))
    random.Random(len(bodies)).shuffle(order)
    send_all(side.target, ((tag, side.target.request(bodies[tag])) for tag in order), answered, connections)
    return answers


def _same(one: tuple[str, Any], other: tuple[str, Any], tolerance: float) -> bool:
    if one[0] != other[0] or one[0] == "none":
        return False
    if not tolerance or one[0] != "200":
        return one == other
    close = (math.isclose(a, b, rel_tol=tolerance) for a, b in zip(one[1], other[1], strict=False))
    return len(one[1]) == len(other[1]) and all(close)


def _mean_batch(ours: Domino, side: Side) -> float:
    """Return the mean rows of a joined prediction, by the replica's own metric; 1 where it joined none."""
    values = ours.metrics(side)
    count = values["domino_batch_rows_count"]
    return values["domino_batch_rows_sum"] / count if count else 1.0


# ---- requests --------------------------------------------------------------------------------------------------------


def _body(kind: Kind, tag: int, chance: random.Random) -> Any:
    """Return a request: mostly one good row, sometimes many, with parameters, or wrong in a way of its own."""
    row = kind.row(tag, chance)
    way = chance.random()
    if way < 0.70:
        return {"data": row}
    if way < 0.82:
        rows = [row, *(kind.row(tag, chance) for _ in range(chance.randrange(1, 5)))]
        return {"data": {name: [r[name] for r in rows] for name in row}}
    if way < 0.88 and "tag" in row:
        return {"data": row, "params": {"factor": chance.randrange(2, 5)}}
    return chance.choice(_FAULTS)(row, tag)


def _text_for_a_number(row: dict[str, Any], tag: int) -> Any:
    return {"data": {**row, next(iter(row)): f"text of {tag}"}}


def _one_column_less(row: dict[str, Any], tag: int) -> Any:
    return {"data": dict(list(row.items())[1:])}


def _one_column_more(row: dict[str, Any], tag: int) -> Any:
    return {"data": {**row, f"unknown {tag}": 1}}


def _columns_of_different_lengths(row: dict[str, Any], tag: int) -> Any:
    return {"data": {name: [cell] * (1 + n) for n, (name, cell) in enumerate(row.items())}}


def _unknown_key(row: dict[str, Any], tag: int) -> Any:
    return {"data": row, f"key {tag}": 1}


def _list_for_an_object(row: dict[str, Any], tag: int) -> Any:
    return [tag]


def _the_model_raises(row: dict[str, Any], tag: int) -> Any:
    return {"data": {**row, "fails": 1}}  # another model refuses a column that it does not know


_FAULTS: Sequence[Callable[[dict[str, Any], int], Any]] = (
    _text_for_a_number, _one_column_less, _one_column_more, _columns_of_different_lengths, _unknown_key,
    _list_for_an_object, _the_model_raises,
)  # fmt: skip


# ---- models ----------------------------------------------------------------------------------------------------------


def _random_row(_tag: int, chance: random.Random) -> dict[str, Any]:
    return {name: chance.uniform(0, 8) for name in _COLUMNS}


def _tag_row(tag: int, _chance: random.Random) -> dict[str, Any]:
    return {"tag": tag, "fails": 0}


def _save_tags(path: Path) -> None:
    import mlflow
    import pandas

    example = (pandas.DataFrame({"tag": [1], "fails": [0]}), {"factor": 1})
    mlflow.pyfunc.save_model(path, python_model=str(Path(__file__).parent / "apps" / "tags.py"), input_example=example)


def _save_labels(path: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    _save_fitted(
        LogisticRegression(max_iter=1000), "sklearn", path, lambda x: (x["a"] + x["b"] > x["c"] + 4).astype(int)
    )


def _save_trees(path: Path) -> None:
    from lightgbm import LGBMRegressor

    _save_fitted(LGBMRegressor(n_estimators=500, n_jobs=1, verbose=-1), "lightgbm", path, lambda x: x["a"] * x["b"])


def _save_linear(path: Path) -> None:
    from sklearn.linear_model import LinearRegression

    _save_fitted(LinearRegression(), "sklearn", path, lambda x: 3 * x["a"] - x["b"] + 0.1 * x["c"] + 50)


def _save_fitted(model: Any, flavor: str, path: Path, label: Callable[[Any], Any]) -> None:
    import mlflow
    import numpy
    import pandas

    rows = pandas.DataFrame(numpy.random.default_rng(0).uniform(0, 8, (2000, 4)), columns=list(_COLUMNS))
    getattr(mlflow, flavor).save_model(model.fit(rows, label(rows)), path, input_example=rows[:2])


KINDS = {
    "tags": Kind(_save_tags, _tag_row),
    "labels": Kind(_save_labels, _random_row),
    "trees": Kind(_save_trees, _random_row),
    "linear": Kind(_save_linear, _random_row, tolerance=1e-9),
}


if __name__ == "__main__":
    main()
