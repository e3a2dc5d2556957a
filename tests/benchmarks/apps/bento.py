"""BentoML with adaptive batching: ``bentoml serve bento:Classifier``, in an environment of its own.

https://docs.bentoml.com/en/latest/get-started/adaptive-batching.html
"""

import os

import bentoml
import numpy


@bentoml.service(workers=int(os.environ["BENCHMARK_WORKERS"]), traffic={"timeout": 60})
class Classifier:
    def __init__(self) -> None:
        import mlflow.pyfunc
        import pandas

        self.model = mlflow.pyfunc.load_model(os.environ["BENCHMARK_MODEL"])
        schema = self.model.metadata.get_input_schema()
        names = None if schema.is_tensor_spec() else schema.input_names()
        self.table = numpy.asarray if names is None else lambda rows: pandas.DataFrame(rows, columns=names)

    @bentoml.api(batchable=True, max_batch_size=int(os.environ["BENCHMARK_BATCH"]))
    def predict(self, rows: numpy.ndarray) -> numpy.ndarray:
        return self.model.predict(self.table(rows))
