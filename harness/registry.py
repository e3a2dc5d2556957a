"""Models of MLflow's, loaded as `mlflow.pyfunc` loads them."""

from __future__ import annotations

import contextlib
import copy
import inspect
import os
import threading
from typing import Any, Mapping

from .config import Config
from .errors import InvalidInput, StartFailed
from .joined import Joined, reason_against
from .parquet import split_of
from .predictor import Call, Input, Predictor
from .problems import Problems, Unknown
from .schema import Columns, Signature, Tensors, compile_signature
from .scoring import Body, columns_of, hinted_of, parse_body, tensors_of

__all__ = ["RegistryPredictor"]

#: MLflow's words for a request that is wrong.
_CALLERS_FAULT = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")


class RegistryPredictor(Predictor):
    """A pyfunc model.

    With a strict schema a request is checked here, exactly, and the model gets a frame or arrays in their final
    types; then MLflow's own enforcement, which would only look at all of it again, is left out. Without one, or for
    types that are not known here, MLflow does everything, as in its own scoring server.
    """

    def __init__(self, config: Config) -> None:
        os.environ["_MLFLOW_IS_IN_SERVING_ENVIRONMENT"] = "true"
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import pyfunc

        self._model = pyfunc.load_model(config.source.path)
        self._takes_params = "params" in inspect.signature(self._model.predict).parameters
        metadata = self._model.metadata
        self._input_schema = metadata.get_input_schema()
        self._hinted = bool(_ask(metadata, "_is_signature_from_type_hint"))
        self.notes = []
        self._signature = Signature(None, None)
        self._strict = config.strict_schema
        self._compile(metadata)
        self._bare = self._without_enforcement()
        #: A joined prediction may run in another thread; there are never more at once than the setting says.
        self._turn: Any = contextlib.nullcontext()
        if config.max_batch_size > 1:
            self._turn = threading.BoundedSemaphore(config.threads)
            self.joined = self._join(config.max_batch_size)

    def _join(self, max_rows: int) -> Joined:
        why = ""
        if self._model.metadata.signature is None:
            why = "the model has no signature"
        elif self._hinted:
            why = "the model's signature came from a type hint"
        elif not self._strict:
            why = "its requests are not checked here (strict_schema=false, or a type that only MLflow checks)"
        why = why or reason_against(self._signature.inputs)
        if why:
            raise StartFailed(
                f"max_batch_size={max_rows}: requests of this model cannot be joined: {why}; set max_batch_size=1"
            )
        return Joined(self._signature.inputs, self.predict, max_rows)

    def _compile(self, metadata: Any) -> None:
        if metadata.signature is None:
            self.notes.append("the model has no signature: its input is not checked")
            self._strict = False
            return
        try:
            self._signature = compile_signature(metadata.signature.to_dict(), hinted=self._hinted)
        except Unknown as unknown:
            self.notes.append(f"the model's signature has {unknown}, which only MLflow itself checks")
            self._strict = False
        if self._signature.inputs is None:
            self._strict = False

    def _without_enforcement(self) -> Any:
        """Return the same model as if it had no input signature; itself where MLflow needs that for more than checks."""
        model = self._model
        metadata = model.metadata
        if self._hinted or not self._strict or _ask(metadata, "_is_type_hint_from_example"):
            return model
        params = metadata.get_params_schema() if hasattr(metadata, "get_params_schema") else None
        stripped = copy.copy(metadata)
        stripped.signature = type(metadata.signature)(params=params) if params is not None else None
        bare = copy.copy(model)
        bare._model_meta = stripped
        if bare.metadata.get_input_schema() is not None:
            self.notes.append("this release of MLflow checks the input a second time")
            return model
        return bare

    def prepare_call(self, call: Call) -> Input:
        if not self._strict:
            return Input(lambda: _jsonable(self._lenient(self._lenient_call(call), call.params)))
        problems = Problems()
        params = self._signature.take_params(call.params, problems)
        if self.joined is not None and call.data is not None and not problems:
            alone = Input(lambda: self._answer_call(call, params, Problems()))
            if self.joined.take_row(alone, call.data, params, call.params):
                return alone
        if self.joined is None or problems:
            return Input(lambda: self._answer_call(call, params, problems))
        table = self.joined.table_of_call(call, problems)
        problems.raise_if_any()
        return self.joined.input(table, params, call.params)

    def _answer_call(self, call: Call, params: Mapping[str, Any] | None, problems: Problems) -> Any:
        data = self._signature.inputs.of_call(call.data, call.parameters, problems)
        problems.raise_if_any()
        return self.predict(data, params)

    def prepare_body(self, body: bytes, content_type: str) -> Input:
        parsed = parse_body(body, content_type, strict=self._strict)
        if parsed.format == "unified":
            data, params = self._unified(parsed.data)
            if self._strict and isinstance(self._signature.inputs, Columns):
                problems = Problems()
                self._signature.inputs.check_cells(data, problems)
                problems.raise_if_any()
            return Input(lambda: _jsonable(self._lenient(data, params)))
        if not self._strict:
            return Input(lambda: _predictions(_jsonable(self._lenient(self._lenient_body(parsed), parsed.params))))
        if parsed.format == "parquet":
            parsed = Body("dataframe_split", split_of(parsed.data))
        problems = Problems()
        for key in parsed.extra:
            problems.add(f"key {key!r}", "is not of MLflow's scoring protocol")
        params = self._signature.take_params(parsed.params, problems)
        inputs = self._signature.inputs if self.joined is None else self.joined.inputs
        data = self._check_body(parsed, inputs, problems)
        problems.raise_if_any()
        if self.joined is None:
            return Input(lambda: _predictions(self.predict(data, params)))
        return self.joined.input(self.joined.table(data), params, parsed.params, _predictions)

    def predict(self, data: Any, params: Mapping[str, Any] | None) -> Any:
        """Let the model predict checked data; the answer is fit for `encoding`."""
        with self._turn:
            return _jsonable(self._predict(self._bare, data, params))

    def invoke_leniently(self, body: bytes) -> Any:
        parsed = parse_body(body, "application/json", strict=False)
        return {"predictions": _jsonable(self._lenient(self._lenient_body(parsed), parsed.params))}

    @staticmethod
    def _check_body(body: Body, inputs: Any, problems: Problems) -> Any:
        if isinstance(inputs, Columns):
            return columns_of(body, inputs, problems)
        if isinstance(inputs, Tensors):
            return tensors_of(body, inputs, problems)
        return hinted_of(body, inputs, problems)

    def _predict(self, model: Any, data: Any, params: Mapping[str, Any] | None) -> Any:
        if self._hinted:
            return self._lenient(data, params)
        return model.predict(data, params=params) if self._takes_params else model.predict(data)

    def _lenient(self, data: Any, params: Mapping[str, Any] | None) -> Any:
        """Predict with MLflow's own checks; what it calls the caller's fault is the caller's fault."""
        from mlflow.exceptions import MlflowException

        try:
            if not self._takes_params:
                return self._model.predict(data)
            return self._model.predict(data, params=params)
        except MlflowException as error:
            if error.error_code in _CALLERS_FAULT or _from_enforcement(error):
                raise InvalidInput(error.message, code="SCHEMA_MISMATCH") from error
            raise

    def _lenient_call(self, call: Call) -> Any:
        """Return what MLflow's own server would make of one row, or of many where every value is a list."""
        data = call.data
        if self._hinted or _is_tensors(self._input_schema):
            value = call.parameters if data is None else data.get("inputs", data) if len(data) == 1 else data
            return self._lenient_body(Body("inputs", value))
        if data is None:
            return self._lenient_body(Body("dataframe_split", {"data": [call.parameters]}))
        if data and all(isinstance(value, list) for value in data.values()):
            if len({len(value) for value in data.values()}) > 1:
                raise InvalidInput("the columns have different numbers of rows")
            rows = [dict(zip(data, row)) for row in zip(*data.values())]
            return self._lenient_body(Body("dataframe_records", rows))
        return self._lenient_body(Body("dataframe_records", [data]))

    def _lenient_body(self, body: Body) -> Any:
        from mlflow.exceptions import MlflowException
        from mlflow.utils import proto_json_utils

        schema = self._input_schema
        try:
            if self._hinted:
                return body.data
            if body.format.startswith("dataframe_"):
                orient = body.format[len("dataframe_") :]
                return proto_json_utils.dataframe_from_parsed_json(body.data, pandas_orient=orient, schema=schema)
            if body.format in ("inputs", "instances"):
                return proto_json_utils.parse_tf_serving_input({body.format: body.data}, schema=schema)
            return _read_table(body, schema)
        except MlflowException as error:
            raise InvalidInput(error.message, code="SCHEMA_MISMATCH") from error

    def _unified(self, document: Mapping[str, Any]) -> Any:
        """Split a language model's body: what the signature calls params goes there, the rest is the data."""
        known = self._signature.params.names if self._signature.params is not None else ()
        params = {key: value for key, value in document.items() if key in known}
        return {key: value for key, value in document.items() if key not in known}, params or None

    def describe(self) -> dict[str, Any]:
        from .openapi import model_schemas

        return model_schemas(self._signature)


def _ask(metadata: Any, name: str) -> Any:
    """Call a method of newer releases of MLflow; None where there is none."""
    method = getattr(metadata, name, None)
    return method() if method is not None else None


def _from_enforcement(error: BaseException) -> bool:
    """Whether an error came out of MLflow's check of the input, which before 2.14 called itself an internal error."""
    frame = error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_name == "_enforce_schema":
            return True
        frame = frame.tb_next
    return False


def _is_tensors(schema: Any) -> bool:
    return schema is not None and schema.is_tensor_spec()


def _read_table(body: Body, schema: Any) -> Any:
    import io

    import pandas

    try:
        if body.format == "parquet":
            return pandas.read_parquet(io.BytesIO(body.data))
        dtypes = dict(zip(schema.input_names(), schema.pandas_types())) if schema is not None else None
        return pandas.read_csv(io.StringIO(body.data), dtype=dtypes)
    except Exception as error:
        raise InvalidInput(f"the body is no {body.format} that pandas can read: {error}") from error


def _predictions(answer: Any) -> dict[str, Any]:
    return {"predictions": answer}


def _jsonable(result: Any) -> Any:
    """Return a series as MLflow does, as a list of records; anything else has its form in `encoding`."""
    kind = type(result)
    if kind.__name__ == "Series" and kind.__module__.partition(".")[0] == "pandas":
        return result.to_frame().to_dict(orient="records")
    return result
