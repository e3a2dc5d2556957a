"""Parquet bodies are checked against the signature like the JSON that says the same."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema
from mlflow.types.schema import Array

from harness.errors import InvalidInput
from harness.parquet import split_of
from harness.problems import Problems
from harness.schema import Columns, compile_signature
from harness.scoring import Body, columns_of


def written(frame: pd.DataFrame, **options: Any) -> bytes:
    buffer = io.BytesIO()
    frame.to_parquet(buffer, **options)
    return buffer.getvalue()


def checked(body: bytes, *specs: ColSpec) -> Any:
    inputs = compile_signature(ModelSignature(inputs=Schema(list(specs))).to_dict(), hinted=False).inputs
    assert isinstance(inputs, Columns)
    problems = Problems()
    found = columns_of(Body("dataframe_split", split_of(body)), inputs, problems)
    problems.raise_if_any()
    return found


def test_values_arrive_as_they_were_written() -> None:
    frame = pd.DataFrame(
        {
            "whole": [2**62 + 1, -1],
            "real": [0.1, -1e300],
            "text": ["ü", ""],
            "yes": [True, False],
            "when": pd.to_datetime(["2026-01-02T03:04:05.123456789", "1969-12-31"], format="ISO8601"),
            "raw": [b"\x00\xff", b""],
            "many": [[1.5, 2.0], []],
        }
    )
    specs = [ColSpec("long", "whole"), ColSpec("double", "real"), ColSpec("string", "text"), ColSpec("boolean", "yes"),
             ColSpec("datetime", "when"), ColSpec("binary", "raw"), ColSpec(Array("double"), "many")]  # fmt: skip
    found = checked(written(frame), *specs)
    assert found["whole"].tolist() == frame["whole"].tolist()
    assert found["real"].tolist() == frame["real"].tolist()
    assert found["text"].tolist() == frame["text"].tolist()
    assert found["yes"].tolist() == frame["yes"].tolist()
    assert found["when"].tolist() == frame["when"].tolist()
    assert found["raw"].tolist() == frame["raw"].tolist()
    assert [list(cell) for cell in found["many"]] == [[1.5, 2.0], []]


def test_labels_of_rows_stay_labels() -> None:
    found = checked(written(pd.DataFrame({"x": [1.0, 2.0]}, index=["a", "b"])), ColSpec("double", "x"))
    assert found.index.tolist() == ["a", "b"]
    assert list(found.columns) == ["x"]


def test_whole_numbers_beside_nulls_lose_no_digit() -> None:
    frame = pd.DataFrame({"x": pd.array([2**53 + 1, None], dtype="Int64")})
    assert split_of(written(frame))["data"] == [[2**53 + 1], [None]]


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (pd.DataFrame({"x": [1.5]}), "1.5"),
        (pd.DataFrame({"x": [1], "y": [2]}), "'y'"),
        (pd.DataFrame({"y": [2]}), "'x'"),
        (pd.DataFrame({"x": ["1"]}), '"1"'),
        (pd.DataFrame({"x": [1.0, np.nan]}), "row 1"),
    ],
)
def test_what_mlflow_would_change_in_silence_is_refused(frame: pd.DataFrame, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        checked(written(frame), ColSpec("long", "x"))
    assert words in caught.value.message


def test_what_is_no_parquet_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no Parquet"):
        split_of(b"PAR1 or not")
    levels = pd.DataFrame({"x": [1]}, index=pd.MultiIndex.from_tuples([("a", 1)]))
    with pytest.raises(InvalidInput, match="several levels"):
        split_of(written(levels))
