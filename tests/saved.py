"""MLflow models of every signature kind, saved for tests."""

import sys
import warnings
from pathlib import Path
from typing import Any, List  # noqa: UP035 - as users of Python 3.8 write it

import cloudpickle
import mlflow
import numpy as np
import pandas as pd
import pydantic
from mlflow.models import ModelSignature, infer_signature
from mlflow.types import ColSpec, Schema
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MLflow's own type hints warn about themselves
    import mlflow.pyfunc

__all__ = ["save"]

# A replica has no `tests` to import the classes from.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

FEATURES, SPECIES = load_iris(return_X_y=True, as_frame=True)
ROW = FEATURES.iloc[0].to_dict()


class Tells(mlflow.pyfunc.PythonModel):
    """Answers with what it was given."""

    def predict(self, context, model_input, params=None):
        if hasattr(model_input, "to_dict"):
            types = {name: str(dtype) for name, dtype in model_input.dtypes.items()}
            return {"rows": model_input.to_dict("records"), "types": types, "params": params}
        return {"type": type(model_input).__name__, "params": params}


class Message(pydantic.BaseModel):
    role: str
    content: str
    times: int = 1


class Hinted(mlflow.pyfunc.PythonModel):
    def predict(self, model_input: List[Message]) -> List[str]:  # noqa: UP006
        return [f"{m.role}: {m.content * m.times}" for m in model_input]


class Raises(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        raise ValueError("cannot predict this")


def save(kind: str, folder: Path) -> Path:
    """Save a model of a kind; its directory is returned."""
    path = folder / kind
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _KINDS[kind](str(path))
    return path


def _sklearn(path: str, data: Any, **options: Any) -> None:
    model = LogisticRegression(max_iter=500).fit(data, SPECIES)
    options = {"pip_requirements": ["mlflow", "scikit-learn"], **options}
    mlflow.sklearn.save_model(model, path, **options)


def _columns(path: str) -> None:
    _sklearn(path, FEATURES, signature=infer_signature(FEATURES, SPECIES), input_example=FEATURES.head(2))


def _tensor(path: str) -> None:
    array = FEATURES.to_numpy()
    _sklearn(path, array, signature=infer_signature(array, SPECIES.to_numpy()), input_example=array[:2])


def _bare(path: str) -> None:
    _sklearn(path, FEATURES)


def _python(path: str, model: Any, **options: Any) -> None:
    mlflow.pyfunc.save_model(path, python_model=model, pip_requirements=["mlflow"], **options)


def _params(path: str) -> None:
    frame = pd.DataFrame({"n": [1, 2], "s": ["a", "b"], "when": pd.to_datetime(["2026-01-01", "2026-01-02"])})
    signature = infer_signature(frame, None, params={"t": 0.5, "k": [1, 2]})
    _python(path, Tells(), signature=signature, input_example=(frame, {"t": 0.7}))


def _nested(path: str) -> None:
    columns = [
        ColSpec(mlflow.types.schema.Array("double"), "a"),
        ColSpec(mlflow.types.schema.Object([mlflow.types.schema.Property("x", "long")]), "o"),
        ColSpec("long", "maybe", required=False),
    ]
    _python(path, Tells(), signature=ModelSignature(inputs=Schema(columns)))


def _misfit(path: str) -> None:
    """Its own example has a null where its signature allows none."""
    signature = ModelSignature(inputs=Schema([ColSpec("double", "x")]))
    _python(path, Tells(), signature=signature, input_example=pd.DataFrame({"x": [1.0, np.nan]}))


_KINDS = {
    "columns": _columns,
    "tensor": _tensor,
    "bare": _bare,
    "params": _params,
    "nested": _nested,
    "misfit": _misfit,
    "hinted": lambda path: _python(path, Hinted(), input_example=[{"role": "user", "content": "hi", "times": 1}]),
    "raises": lambda path: _python(path, Raises(), signature=ModelSignature(inputs=Schema([ColSpec("double", "x")]))),
}
