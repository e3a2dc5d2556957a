"""An MLflow model whose answers say whose they are: the row's tag, times a parameter; some rows it cannot stand."""

from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class Tags(PythonModel):
    def predict(self, context, model_input, params=None):
        if (model_input["fails"] != 0).any():
            raise ArithmeticError("a row asked for it")
        return (model_input["tag"] * (params or {}).get("factor", 1)).to_numpy()


set_model(Tags())
