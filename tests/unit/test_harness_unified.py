"""Bodies of language models' protocols go to the model as they are, but not past its signature."""

from __future__ import annotations

import json

import pytest
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema
from mlflow.types.schema import Array, DataType, Object, Property

from harness.problems import Problems
from harness.schema import Columns, compile_signature
from harness.scoring import parse_body


def columns(*specs: ColSpec) -> Columns:
    signature = compile_signature(ModelSignature(inputs=Schema(list(specs))).to_dict(), hinted=False)
    assert isinstance(signature.inputs, Columns)
    return signature.inputs


def problems_of(inputs: Columns, body: object) -> str:
    parsed = parse_body(json.dumps(body).encode(), "application/json")
    assert parsed.format == "unified"
    problems = Problems()
    inputs.check_cells(parsed.data, problems)
    try:
        problems.raise_if_any()
    except Exception as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"input": [1], "bogus": [2]}, "'bogus'"),
        ({"input": [1.5]}, "'input'"),
        ({"input": "one"}, "'input'"),
        ({"input": 1}, ""),
        ({"input": [1, 2]}, ""),
    ],
)
def test_a_column_named_input_is_checked_like_any_other(body: object, message: str) -> None:
    told = problems_of(columns(ColSpec("long", "input")), body)
    assert (message in told) if message else not told


def test_messages_of_a_chat_model_pass_and_wrong_ones_do_not() -> None:
    message = Object([Property("role", DataType.string), Property("content", DataType.string)])
    inputs = columns(ColSpec(Array(message), "messages"))
    assert not problems_of(inputs, {"messages": [{"role": "user", "content": "hello"}]})
    assert "'messages'" in problems_of(inputs, {"messages": [{"role": "user", "content": 7}]})


def test_a_table_stays_a_table_whatever_stands_beside_it() -> None:
    parsed = parse_body(b'{"dataframe_records": [{"input": 1}], "input": [7]}', "application/json")
    assert (parsed.format, tuple(parsed.extra)) == ("dataframe_records", ("input",))
