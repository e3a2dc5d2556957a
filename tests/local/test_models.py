"""Models of every kind answer as `mlflow.pyfunc.load_model(...).predict` does, with one worker and with two."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.deployment import Deployment

#: The same for all, so that one environment serves them.
PACKAGES = ("mlflow", "scikit-learn", "pandas", "numpy", "lightgbm", "statsmodels", "xgboost-cpu", "cloudpickle")


def pins() -> list[str]:
    return [f"{name}=={importlib.metadata.version(name)}" for name in PACKAGES]


def iris() -> tuple[Any, Any]:
    from sklearn.datasets import load_iris

    frame, labels = load_iris(as_frame=True, return_X_y=True)
    return frame, labels


def save_sklearn(path: str) -> Any:
    import mlflow
    from sklearn.linear_model import LogisticRegression

    frame, labels = iris()
    model = LogisticRegression(max_iter=500).fit(frame, labels)
    mlflow.sklearn.save_model(model, path, input_example=frame.head(3), pip_requirements=pins())
    return {column: frame[column].iloc[[0, 60, 120]].tolist() for column in frame}


def save_xgboost(path: str) -> Any:
    import mlflow
    import xgboost

    frame, labels = iris()
    model = xgboost.XGBClassifier(n_estimators=10).fit(frame, labels)
    mlflow.xgboost.save_model(model, path, input_example=frame.head(3), pip_requirements=pins())
    return {column: frame[column].iloc[[0, 60, 120]].tolist() for column in frame}


def save_lightgbm(path: str) -> Any:
    import lightgbm
    import mlflow

    frame, labels = iris()
    frame.columns = [c.replace(" ", "_").strip("(cm)_") for c in frame]
    model = lightgbm.LGBMClassifier(n_estimators=10, verbose=-1).fit(frame, labels)
    mlflow.lightgbm.save_model(model, path, input_example=frame.head(3), pip_requirements=pins())
    return {column: frame[column].iloc[[0, 60, 120]].tolist() for column in frame}


def save_statsmodels(path: str) -> Any:
    import mlflow
    import statsmodels.api

    frame, labels = iris()
    frame = frame.rename(columns=lambda c: c.split(" (")[0].replace(" ", "_"))
    model = statsmodels.api.OLS(labels, frame).fit()
    mlflow.statsmodels.save_model(model, path, input_example=frame.head(3), pip_requirements=pins())
    return {column: frame[column].iloc[[0, 60, 120]].tolist() for column in frame}


def save_function_with_params(path: str) -> Any:
    import mlflow
    import pandas as pd
    from mlflow.models import infer_signature

    class Scaled(mlflow.pyfunc.PythonModel):
        def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
            return model_input["x"] * (params or {}).get("factor", 1.0) + model_input["n"]

    example = pd.DataFrame({"x": [1.5, 2.5], "n": [1, 2]})
    signature = infer_signature(example, [1.0], params={"factor": 2.0})
    mlflow.pyfunc.save_model(path, python_model=Scaled(), signature=signature, pip_requirements=pins())
    return {"x": [1.5, 2.5], "n": [1, 2]}


def save_without_signature(path: str) -> Any:
    import mlflow
    from sklearn.linear_model import LinearRegression

    frame, labels = iris()
    mlflow.sklearn.save_model(LinearRegression().fit(frame, labels), path, pip_requirements=pins())
    return {column: frame[column].iloc[[0, 60]].tolist() for column in frame}


COLUMNS = [
    save_sklearn,
    save_xgboost,
    save_lightgbm,
    save_statsmodels,
    save_function_with_params,
    save_without_signature,
]


def numbers(predictions: list[Any]) -> list[float]:
    """Flatten what came back: a list, a list of rows, or records."""
    rows = [list(p.values()) if isinstance(p, dict) else p if isinstance(p, list) else [p] for p in predictions]
    return [value for row in rows for value in row]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("save", COLUMNS, ids=lambda f: f.__name__.removeprefix("save_"))
def test_a_model_with_columns_answers_as_pyfunc_does(
    deployment: Deployment, tmp_path: Path, save: Callable[[str], Any]
) -> None:
    import mlflow
    import numpy as np
    import pandas as pd

    path = str(tmp_path / "model")
    columns = save(path)
    wanted = np.asarray(mlflow.pyfunc.load_model(path).predict(pd.DataFrame(columns))).tolist()
    name = save.__name__.replace("_", "-")
    view = deployment.create(name, path)
    for workers in (1, 2):
        if workers == 2:
            view = deployment.update(name, workers=2)
        many = deployment.call(view, {"data": columns})
        assert many.ok, many.text
        assert numbers(many.json()["result"]) == pytest.approx(np.ravel(wanted))
        one = deployment.call(view, {"data": {k: v[0] for k, v in columns.items()}})
        assert numbers(one.json()["result"]) == pytest.approx(np.ravel(wanted[:1]))
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        split = {"columns": list(columns), "data": [list(r.values()) for r in rows]}
        bodies: list[dict[str, Any]] = [{"dataframe_records": rows}, {"dataframe_split": split}]
        if save is not save_without_signature:  # arrays by name need a signature to become columns, in MLflow too
            bodies += [{"inputs": columns}, {"instances": rows}]
        for body in bodies:
            answer = deployment.call(view, body, route="latest/invocations")
            assert answer.ok, (list(body), answer.text)
            assert numbers(answer.json()["predictions"]) == pytest.approx(np.ravel(wanted)), list(body)


@pytest.mark.filterwarnings("ignore")
def test_params_have_their_defaults_and_can_be_set(deployment: Deployment, tmp_path: Path) -> None:
    path = str(tmp_path / "model")
    save_function_with_params(path)
    view = deployment.create("params", path)
    body = {"dataframe_records": [{"x": 1.5, "n": 1}]}
    by_default = deployment.call(view, body, route="latest/invocations").json()["predictions"]
    set_ = deployment.call(view, {**body, "params": {"factor": 10.0}}, route="latest/invocations").json()["predictions"]
    unknown = deployment.call(view, {**body, "params": {"factr": 10.0}}, route="latest/invocations")
    assert numbers([by_default[0], set_[0]]) == [4.0, 16.0]
    assert unknown.status_code == 400
    assert "factr" in unknown.json()["error"]["message"]


@pytest.mark.filterwarnings("ignore")
def test_a_tensor_model_answers_as_pyfunc_does(deployment: Deployment, tmp_path: Path) -> None:
    import mlflow
    import numpy as np
    from mlflow.models import infer_signature

    class Sums(mlflow.pyfunc.PythonModel):
        def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
            return model_input.sum(axis=(1, 2))

    example = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    path = str(tmp_path / "model")
    mlflow.pyfunc.save_model(
        path, python_model=Sums(), signature=infer_signature(example, np.zeros(2, np.float32)), pip_requirements=pins()
    )
    wanted = mlflow.pyfunc.load_model(path).predict(example).tolist()
    view = deployment.create("tensor", path)
    for body in ({"inputs": example.tolist()}, {"instances": example.tolist()}):
        answer = deployment.call(view, body, route="latest/invocations")
        assert answer.ok, answer.text
        assert answer.json()["predictions"] == wanted


HINTED = """
import mlflow, sys
from mlflow.pyfunc import PythonModel
class Greets(PythonModel):
    def predict(self, model_input: list[str], params=None) -> list[str]:
        return ["hello " + name for name in model_input]
mlflow.pyfunc.save_model(sys.argv[1], python_model=Greets(), input_example=["a"], pip_requirements=sys.argv[2].split(","))
"""


def test_a_model_with_type_hints_answers_as_pyfunc_does(deployment: Deployment, tmp_path: Path) -> None:
    import mlflow

    path = str(tmp_path / "model")
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", HINTED, path, ",".join(pins())], check=True, capture_output=True
    )
    wanted = mlflow.pyfunc.load_model(path).predict(["x", "y"])
    view = deployment.create("hinted", path)
    answer = deployment.call(view, {"inputs": ["x", "y"]}, route="latest/invocations")
    assert answer.ok, answer.text
    assert answer.json()["predictions"] == wanted


SAVE = """
import json, sys, mlflow, numpy, pandas
from sklearn.linear_model import LogisticRegression
from sklearn.datasets import load_iris
frame, labels = load_iris(as_frame=True, return_X_y=True)
model = LogisticRegression(max_iter=500).fit(frame, labels)
mlflow.sklearn.save_model(model, sys.argv[1], input_example=frame.head(3))
loaded = mlflow.pyfunc.load_model(sys.argv[1])
print(json.dumps(loaded.predict(frame.iloc[[0, 60, 120]]).tolist()))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("minor", "packages"),
    [
        (
            "3.10",
            ["mlflow==3.1.0", "scikit-learn==1.5.2", "pandas==2.0.3", "numpy<2", "setuptools<81"],
        ),  # old pins, unlike ours
        ("3.12", ["mlflow==3.17.2", "scikit-learn"]),
        ("3.13", ["mlflow==3.17.2", "scikit-learn"]),
    ],
)
def test_a_model_saved_under_another_python_answers_as_it_did_there(
    deployment: Deployment, tmp_path: Path, minor: str, packages: list[str]
) -> None:
    found = [
        *map(str, sorted(Path.home().glob(f".pyenv/versions/{minor}.*/bin/python"))),
        shutil.which(f"python{minor}"),
    ]
    works = (p for p in found if p and subprocess.run([p, "-V"], capture_output=True).returncode == 0)
    interpreter = next(works, None)
    if interpreter is None:
        pytest.skip(f"no Python {minor} on this machine")
    import uv

    program = uv.find_uv_bin()
    subprocess.run([program, "venv", "-q", "--python", interpreter, tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([program, "pip", "install", "-q", "--python", python, *packages], check=True)
    done = subprocess.run(
        [python, "-W", "ignore", "-c", SAVE, tmp_path / "model"], check=True, capture_output=True, text=True
    )
    frame, _labels = iris()
    view = deployment.create(f"saved-{minor}", str(tmp_path / "model"))
    answer = deployment.call(view, {"data": {c: frame[c].iloc[[0, 60, 120]].tolist() for c in frame}})
    assert answer.ok, answer.text
    assert answer.json()["result"] == json.loads(done.stdout.splitlines()[-1])
    assert view.current is not None
    assert view.current.version.artifact is not None
    assert view.current.version.artifact.python_version.startswith(f"{minor}.")


def test_a_second_version_with_the_same_lock_installs_nothing(deployment: Deployment, tmp_path: Path) -> None:
    path = str(tmp_path / "model")
    save_without_signature(path)
    first = deployment.create("cached", path)
    deployment.said.clear()
    second = deployment.update("cached", path)
    assert first.current
    assert second.current
    assert first.current.version.artifact.environment == second.current.version.artifact.environment  # type: ignore[union-attr]
    assert not any("nstall" in line and "skinny" not in line for line in deployment.said), deployment.said
