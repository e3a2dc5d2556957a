"""MLflow's scoring protocol: the bodies of /invocations, brought into the form that a compiled signature checks.

JSON objects with one of ``dataframe_split``, ``dataframe_records``, ``instances`` and ``inputs``, and maybe `params`;
CSV; Parquet. (mlflow.pyfunc.scoring_server, since 2.0.)
"""

from __future__ import annotations

import csv
import io
from typing import Any, Mapping, NamedTuple, Sequence

from .errors import InvalidInput, Unsupported
from .parsing import parse_json
from .problems import Problems, show
from .schema import Columns, Hinted, Layout, Tensors

__all__ = ["FORMATS", "Body", "columns_of", "parse_body", "tensors_of"]

FORMATS = ("dataframe_split", "dataframe_records", "instances", "inputs")
#: Bodies of language models' protocols; they go to the model as they are, and their answers come back so.
_UNIFIED = ("messages", "prompt", "input")
_JSON, _CSV, _PARQUET = "application/json", "text/csv", "application/vnd.apache.parquet"


class Body(NamedTuple):
    """A parsed body.

    Attributes
    ----------
    format : str
        One of `FORMATS`, ``csv``, ``parquet`` or ``unified``.
    data : object
        What it holds: decoded JSON, text, or bytes.
    params : dict or None
        Inference parameters.
    extra : tuple of str
        Keys that the protocol does not know.
    """

    format: str
    data: Any
    params: Mapping[str, Any] | None = None
    extra: Sequence[str] = ()


def parse_body(body: bytes, content_type: str, *, strict: bool = True) -> Body:
    """Find out in which dialect a body is; `strict` as in `parse_json`.

    Raises
    ------
    Unsupported
        Not a media type of the protocol, or not in UTF-8.
    InvalidInput
    """
    kind, *pairs = [part.strip() for part in content_type.split(";")]
    for pair in pairs:
        name, _, value = pair.partition("=")
        if name.strip().lower() != "charset" or value.strip(' "').lower() not in ("utf-8", "utf8"):
            raise Unsupported(f"the only parameter of a content type here is charset=utf-8, not {pair!r}")
    if kind.lower() == _CSV:
        return Body("csv", _decode(body))
    if kind.lower() == _PARQUET:
        return Body("parquet", body)
    if kind.lower() != _JSON:
        raise Unsupported(f"the content type must be {_JSON}, {_CSV} or {_PARQUET}, not {kind or 'absent'!r}")
    return _parse_object(parse_json(body, strict=strict))


def _decode(body: bytes) -> str:
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"the body is not UTF-8: {error}") from None


def _parse_object(document: Any) -> Body:
    names = ", ".join(FORMATS)
    if not isinstance(document, dict):
        raise InvalidInput(f"the body must be a JSON object with exactly one of {names}")
    found = [key for key in document if key in FORMATS]
    if not found and any(key in document for key in _UNIFIED):
        return Body("unified", document)
    if len(found) != 1:
        there = f"there are {', '.join(found)}" if found else f"there are only {show(list(document))}"
        raise InvalidInput(f"the body must be a JSON object with exactly one of {names}; {there}")
    params = document.get("params")
    if params is not None and not isinstance(params, dict):
        raise InvalidInput("`params` must be an object")
    extra = tuple(key for key in document if key not in FORMATS and key != "params")
    return Body(found[0], document[found[0]], params, extra)


def columns_of(body: Body, columns: Columns, problems: Problems) -> Any:
    """Return the frame of a body for a signature of columns; None where there are problems."""
    if body.format == "csv":
        return columns.frame(_read_csv(body.data, columns, problems), problems)
    if body.format == "dataframe_split":
        return _split(body.data, columns, problems)
    if body.format == "dataframe_records":
        return _records(_records_list(body), columns, problems, Layout())
    return _inputs(body, columns, problems)


def _records_list(body: Body) -> Any:
    if not isinstance(body.data, list) or not all(isinstance(row, dict) for row in body.data):
        raise InvalidInput(f"`{body.format}` must be a list of objects, one for each row")
    return body.data


def _split(data: Any, columns: Columns, problems: Problems) -> Any:
    rows = _split_rows(data)
    labels = data.get("columns")
    names = columns.names if labels is None or not columns.named else labels
    if labels is None and columns.named:
        raise InvalidInput("`dataframe_split` must hold `columns`: this model's inputs have names")
    if len(set(map(str, names))) != len(names):
        raise InvalidInput("`dataframe_split` has two columns of the same name")
    width = len(labels) if labels is not None else len(names)
    for number, row in enumerate(rows):
        if len(row) != width:
            problems.add(f"row {number}", f"has {len(row)} cells, there are {width} columns")
    if not columns.named and width != len(names):
        problems.add("", f"there are {width} columns, the model's signature has {len(names)}")
    if problems:
        return None
    cells = {str(name): [row[at] for row in rows] for at, name in enumerate(names)}
    return columns.frame(cells, problems, count=len(rows), layout=Layout(index=data.get("index"), labels=labels))


def _split_rows(data: Any) -> Sequence[Any]:
    if not isinstance(data, dict) or "data" not in data or set(data) - {"columns", "index", "data"}:
        raise InvalidInput("`dataframe_split` must be an object with `data`, and maybe `columns` and `index`")
    rows = data["data"]
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise InvalidInput("`data` of `dataframe_split` must be a list of rows, each a list of cells")
    for key in ("columns", "index"):
        if data.get(key) is not None and not isinstance(data[key], list):
            raise InvalidInput(f"`{key}` of `dataframe_split` must be a list")
    if data.get("index") is not None and len(data["index"]) != len(rows):
        raise InvalidInput(f"`index` of `dataframe_split` has {len(data['index'])} labels for {len(rows)} rows")
    return rows


def _records(rows: Sequence[Mapping[str, Any]], columns: Columns, problems: Problems, layout: Layout) -> Any:
    names: list[str] = list(dict.fromkeys(name for row in rows for name in row))
    if not columns.named and len(names) == len(columns.names):
        renamed = dict(zip(names, columns.names))
        rows = [{renamed[name]: value for name, value in row.items()} for row in rows]
        layout, names = layout._replace(labels=names), columns.names
    optional = {column.name for column in columns.columns if not column.required}
    for number, row in enumerate(rows):
        for name in names:
            if name not in row and name not in optional and name in columns.names:
                problems.add(f"row {number}", f"column {name!r} is missing")
    cells = {name: [row.get(name) for row in rows] for name in names}
    return None if problems else columns.frame(cells, problems, count=len(rows), layout=layout)


def _inputs(body: Body, columns: Columns, problems: Problems) -> Any:
    data, layout = body.data, Layout(arrays=True)
    if isinstance(data, list) and data and all(isinstance(row, dict) for row in data):
        single = columns.columns[0].kind.name in ("object", "map", "any") and len(columns.columns) == 1
        if not (single and not columns.named):
            return _records(data, columns, problems, layout)
    if isinstance(data, dict) and columns.named:
        return columns.of_cells(data, problems, layout)
    if len(columns.columns) == 1:
        return columns.of_cells({columns.names[0]: data}, problems, layout)
    if isinstance(data, list) and not columns.named and all(isinstance(row, list) for row in data):
        return _split({"data": data}, columns, problems)
    raise InvalidInput(f"`{body.format}` must be an object of columns, or a list of objects, one for each row")


def _read_csv(text: str, columns: Columns, problems: Problems) -> dict[str, list[Any]]:
    """Read CSV with a header; an empty cell is null, and nothing else is ("NA" is text)."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header, *rows = [row for row in reader if row]
    except (ValueError, csv.Error) as error:
        raise InvalidInput(f"the body is not CSV with a line of column names first: {error}") from None
    names = header if columns.named else columns.names
    if len(set(header)) != len(header):
        raise InvalidInput("the CSV has two columns of the same name")
    for number, row in enumerate(rows):
        if len(row) != len(header):
            problems.add(f"row {number}", f"has {len(row)} cells, there are {len(header)} columns")
    if len(names) != len(header):
        problems.add("", f"there are {len(header)} columns, the model's signature has {len(names)}")
    problems.raise_if_any()
    kinds = {column.name: column.kind for column in columns.columns}
    read = {name: getattr(kinds.get(name), "read_text", str) for name in names}
    return {name: [read[name](row[at]) if row[at] else None for row in rows] for at, name in enumerate(names)}


def tensors_of(body: Body, tensors: Tensors, problems: Problems) -> Any:
    """Return the array, or the arrays by name, of a body for a signature of tensors."""
    arrays = tensors.arrays(_tensor_data(body, tensors), problems)
    return arrays if tensors.named or problems else arrays[tensors.names[0]]


def _tensor_data(body: Body, tensors: Tensors) -> dict[str, Any]:
    data = body.data
    if body.format.startswith("dataframe"):
        return _tensors_of_rows(body, tensors)
    if body.format == "csv":
        raise InvalidInput("this model takes tensors: send JSON")
    if isinstance(data, list) and data and all(isinstance(row, dict) for row in data) and tensors.named:
        names = list(dict.fromkeys(name for row in data for name in row))
        missing = [number for number, row in enumerate(data) if len(row) != len(names)]
        if missing:
            raise InvalidInput(f"`{body.format}`: row {missing[0]} has not all of the inputs {', '.join(names)}")
        return {name: [row[name] for row in data] for name in names}
    if isinstance(data, dict) and tensors.named:
        return data
    if len(tensors.names) == 1:
        return {tensors.names[0]: data}
    raise InvalidInput(f"`{body.format}` must be an object with the inputs {', '.join(tensors.names)}")


def _tensors_of_rows(body: Body, tensors: Tensors) -> dict[str, Any]:
    """Turn rows into tensors: a column for each, or the rows themselves where there is one tensor without a name."""
    if body.format == "dataframe_split":
        rows, names = _split_rows(body.data), body.data.get("columns")
        if tensors.named and names is None:
            raise InvalidInput("`dataframe_split` must hold `columns`: this model's inputs have names")
        width = len(names) if names is not None else len(rows[0]) if rows else 0
    else:
        names = list(dict.fromkeys(name for row in _records_list(body) for name in row))
        rows, width = [[row.get(name) for name in names] for row in body.data], len(names)
    if any(len(row) != width for row in rows):
        raise InvalidInput(f"`{body.format}`: the rows have different lengths")
    if not tensors.named:
        tensor = tensors.tensors[0]
        return {tensors.names[0]: [row[0] for row in rows] if width == 1 and len(tensor.shape) != 2 else rows}
    return {name: _shaped([row[at] for row in rows], tensors, name) for at, name in enumerate(names)}


def _shaped(cells: list[Any], tensors: Tensors, name: str) -> list[Any]:
    tensor = dict(zip(tensors.names, tensors.tensors)).get(name)
    scalars = not any(isinstance(cell, list) for cell in cells)
    return [[cell] for cell in cells] if tensor is not None and len(tensor.shape) == 2 and scalars else cells


def hinted_of(body: Body, hinted: Hinted, problems: Problems) -> Any:
    """Return the list of a body for a signature that came from a type hint: only `inputs` has a form for it."""
    if body.format != "inputs":
        raise InvalidInput('this model takes {"inputs": [...]}: its signature came from a Python type hint')
    return hinted.check(body.data, problems)
