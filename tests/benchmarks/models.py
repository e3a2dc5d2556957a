"""The models that are served: saved as MLflow saves them, with one row, its right answer, and its form on each wire."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["MODELS", "Model"]


@dataclass(frozen=True)
class Model:
    """A model that is saved, and what a request to it holds.

    Attributes
    ----------
    path : Path
        As `mlflow.pyfunc.load_model` takes it.
    columns : sequence of str
        Empty where the model takes one tensor of rows.
    row : sequence of float
    answer : int
        What the model says of the row.
    """

    path: Path
    columns: Sequence[str]
    row: Sequence[float]
    answer: int

    def domino(self, row: Sequence[Any] | None = None) -> Any:
        row = self.row if row is None else row
        return {"data": dict(zip(self.columns, row, strict=False)) if self.columns else {"inputs": [row]}}

    def mlflow(self) -> Any:
        if self.columns:
            return {"dataframe_records": [dict(zip(self.columns, self.row, strict=True))]}
        return {"inputs": [self.row]}

    def open_inference(self) -> Any:
        """Return the body of the V2 protocol, which MLServer and others speak."""
        if self.columns:
            cells = zip(self.columns, self.row, strict=True)
            inputs = [{"name": name, "shape": [1, 1], "datatype": "FP64", "data": [cell]} for name, cell in cells]
            return {"parameters": {"content_type": "pd"}, "inputs": inputs}
        tensor = {"name": "inputs", "shape": [1, len(self.row)], "datatype": "FP64", "data": self.row}
        return {"parameters": {"content_type": "np"}, "inputs": [tensor]}


def iris(folder: Path) -> Model:
    """Logistic regression over four columns: the model costs nothing, so that all of it is the server's cost."""
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    frame, labels = load_iris(as_frame=True, return_X_y=True)
    model = LogisticRegression(max_iter=1000).fit(frame, labels)
    return _save("sklearn", model, frame, folder)


def trees(folder: Path) -> Model:
    """LightGBM with 500 trees over thirty columns."""
    from lightgbm import LGBMClassifier
    from sklearn.datasets import load_breast_cancer

    frame, labels = load_breast_cancer(as_frame=True, return_X_y=True)
    model = LGBMClassifier(n_estimators=500, n_jobs=1, verbose=-1).fit(frame, labels)
    return _save("lightgbm", model, frame, folder)


def network(folder: Path) -> Model:
    """A neural network of three layers (64, 512, 256, 10) over a tensor: handwritten digits of 8 by 8."""
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    images, labels = load_digits(return_X_y=True)
    model = MLPClassifier((512, 256), max_iter=15, random_state=0)
    trusted = ["sklearn.neural_network._stochastic_optimizers.AdamOptimizer"]
    return _save("sklearn", model.fit(images, labels), images, folder, skops_trusted_types=trusted)


MODELS: dict[str, Callable[[Path], Model]] = {"iris": iris, "trees": trees, "network": network}


def _save(flavor: str, model: Any, rows: Any, folder: Path, **options: Any) -> Model:
    import mlflow

    path = folder / "model"
    getattr(mlflow, flavor).save_model(model, path, input_example=rows[:2], **options)
    columns = [str(name) for name in getattr(rows, "columns", ())]
    row = [float(cell) for cell in (rows.to_numpy() if columns else rows)[-1]]
    return Model(path, columns, row, int(model.predict(rows[-1:])[0]))
