"""Parquet bodies, as the rows that JSON would have held: so that they are checked like those, value for value."""

from __future__ import annotations

import base64
import datetime
import io
from typing import Any

from .errors import InvalidInput, Unsupported

__all__ = ["split_of"]


def split_of(body: bytes) -> dict[str, Any]:
    """Return what a Parquet file holds in the form of `dataframe_split`.

    NaN is null, as pandas means it; dates are text of ISO 8601; bytes are base64.

    Raises
    ------
    InvalidInput
        It is no Parquet file.
    Unsupported
        The model's environment has no pyarrow.
    """
    try:
        from pyarrow import parquet
    except ImportError:
        raise Unsupported("the model's environment has no pyarrow, which reads Parquet: send JSON") from None
    try:
        table = parquet.read_table(io.BytesIO(body))
    except Exception as error:
        raise InvalidInput(f"the body is no Parquet file: {error}") from None
    names, index = list(table.column_names), _index_of(table.schema)
    columns = [[_plain(value) for value in column.to_pylist()] for column in table.columns]
    found: dict[str, Any] = {"columns": [name for name in names if name not in index]}
    if index:
        found["index"] = columns[names.index(index[0])]
    kept = [column for name, column in zip(names, columns) if name not in index]
    found["data"] = [list(row) for row in zip(*kept)] if kept else [[] for _ in range(table.num_rows)]
    return found


def _index_of(schema: Any) -> list[str]:
    """Return the column in which pandas kept the labels of the rows, where it did."""
    told = (schema.pandas_metadata or {}).get("index_columns", ())
    index = [name for name in told if isinstance(name, str) and name in schema.names]
    if len(index) > 1:
        raise InvalidInput("the Parquet file's rows have labels of several levels: write it with index=False")
    return index


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return None if value != value else value
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        if value and all(isinstance(pair, tuple) for pair in value):  # how pyarrow gives maps
            return {key: _plain(inner) for key, inner in value}
        return [_plain(inner) for inner in value]
    return value if value is None or isinstance(value, (str, int)) else str(value)
