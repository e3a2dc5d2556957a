"""The compiled check against MLflow itself: the same data for the model, or a refusal with its reason."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.models import ModelSignature
from mlflow.models.utils import _enforce_params_schema, _enforce_schema
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import AnyType, Array, Map, Object, Property
from mlflow.utils.proto_json_utils import dataframe_from_parsed_json

from harness.errors import InvalidInput
from harness.problems import Problems
from harness.schema import compile_signature
from harness.scoring import columns_of, parse_body, tensors_of


def compiled(*columns: ColSpec, params: ParamSchema | None = None) -> Any:
    return compile_signature(ModelSignature(inputs=Schema(list(columns)), params=params).to_dict())


def take(signature: Any, data: dict[str, Any] | None = None, parameters: list[Any] | None = None) -> Any:
    problems = Problems()
    frame = signature.inputs.of_call(data, parameters, problems)
    problems.raise_if_any()
    return frame


def refusal(signature: Any, data: dict[str, Any]) -> str:
    with pytest.raises(InvalidInput) as caught:
        take(signature, data)
    return caught.value.message


# What JSON can hold for each type, exactly; and what MLflow's documentation calls it in Python.
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
# No null characters: MLflow takes text in lists through arrays of numpy's, which lose those at the end.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
MOMENTS = st.datetimes(
    min_value=pd.Timestamp(1680, 1, 1).to_pydatetime(), max_value=pd.Timestamp(2260, 1, 1).to_pydatetime()
)
SCALARS: dict[DataType, st.SearchStrategy[tuple[Any, Any]]] = {
    DataType.boolean: st.booleans().map(lambda v: (v, v)),
    DataType.integer: st.integers(-(2**31), 2**31 - 1).map(lambda v: (v, np.int32(v))),
    DataType.long: st.integers(-(2**63), 2**63 - 1).map(lambda v: (v, v)),
    DataType.float: st.floats(width=32, allow_nan=False, allow_infinity=False).map(lambda v: (v, np.float32(v))),
    DataType.double: NUMBERS.map(lambda v: (v, v)),
    DataType.string: TEXT.map(lambda v: (v, v)),
    DataType.binary: st.binary(max_size=8).map(lambda v: (base64.b64encode(v).decode(), v)),
    DataType.datetime: MOMENTS.map(lambda v: (v.isoformat(), pd.Timestamp(v))),
}
#: Types whose natural Python form MLflow's enforcement takes inside lists and objects too.
NESTABLE = (DataType.boolean, DataType.long, DataType.double, DataType.string)


def cells(kind: Any) -> st.SearchStrategy[tuple[Any, Any]]:
    """Draw pairs of a JSON value and of what a caller of pyfunc in Python would pass for it."""
    if isinstance(kind, DataType):
        return SCALARS[kind]
    if isinstance(kind, Array):
        return st.lists(cells(kind.dtype), min_size=1, max_size=3).map(
            lambda vs: ([j for j, _ in vs], [p for _, p in vs])
        )
    if isinstance(kind, Map):
        pairs = st.dictionaries(TEXT, cells(kind.value_type), min_size=1, max_size=3)
        return pairs.map(lambda d: ({k: j for k, (j, _) in d.items()}, {k: p for k, (_, p) in d.items()}))
    if isinstance(kind, Object):
        properties = {p.name: cells(p.dtype) for p in kind.properties if p.required}
        optional = {p.name: cells(p.dtype) for p in kind.properties if not p.required}
        drawn = st.fixed_dictionaries(properties, optional=optional)
        return drawn.map(lambda d: ({k: j for k, (j, _) in d.items()}, {k: p for k, (_, p) in d.items()}))
    raise AssertionError(kind)


KINDS = st.deferred(
    lambda: (
        st.sampled_from(NESTABLE)
        | KINDS.map(Array)
        | KINDS.map(Map)
        | st.lists(
            st.tuples(st.sampled_from("abc"), KINDS, st.booleans()), min_size=1, max_size=3, unique_by=lambda t: t[0]
        ).map(lambda ps: Object([Property(n, k, required=r) for n, k, r in ps]))
    )
)
COLUMN_KINDS = st.sampled_from(list(SCALARS)) | KINDS


@st.composite
def tables(draw: Any) -> tuple[list[ColSpec], dict[str, list[Any]], dict[str, list[Any]]]:
    """Draw a signature, cells as JSON has them, and cells as Python has them."""
    names = draw(st.lists(st.sampled_from(["x", "y", "with space", "ü", "0"]), min_size=1, max_size=4, unique=True))
    rows = draw(st.integers(1, 12))
    specs, as_json, as_python = [], {}, {}
    for name in names:
        kind, required = draw(COLUMN_KINDS), draw(st.booleans())
        specs.append(ColSpec(kind, name, required=required))
        if required or draw(st.booleans()):
            pairs = draw(st.lists(cells(kind), min_size=rows, max_size=rows))
            as_json[name], as_python[name] = [j for j, _ in pairs], [p for _, p in pairs]
    return specs, as_json, as_python


EXACT = {DataType.integer: "int32", DataType.float: "float32", DataType.datetime: "datetime64[ns]"}


def python_frame(specs: list[ColSpec], columns: dict[str, list[Any]], rows: int) -> pd.DataFrame:
    frame = pd.DataFrame(index=range(rows))
    for spec in specs:
        if spec.name in columns:
            exact = EXACT.get(spec.type) if isinstance(spec.type, DataType) else None
            values = columns[spec.name]
            frame[spec.name] = pd.Series(values, dtype=exact) if exact else pd.Series(values)
    return frame


@settings(max_examples=300, deadline=None)
@given(tables())
def test_a_model_sees_what_pyfunc_would_show_it(table: Any) -> None:
    specs, as_json, as_python = table
    if not as_json:
        return
    rows = len(next(iter(as_json.values())))
    decoded = json.loads(json.dumps(as_json))
    expected = _enforce_schema(python_frame(specs, as_python, rows), Schema(specs))
    problems = Problems()
    frame = compiled(*specs).inputs.frame(decoded, problems)
    problems.raise_if_any()
    pd.testing.assert_frame_equal(frame, expected)
    for name in expected:
        for mine, theirs in zip(frame[name], expected[name], strict=True):
            assert same(mine, theirs), (name, mine, theirs)


def same(mine: Any, theirs: Any) -> bool:
    """Whether two cells are equal in type too, all the way down."""
    if isinstance(theirs, dict):
        return type(mine) is dict and list(mine) == list(theirs) and all(same(mine[k], theirs[k]) for k in theirs)
    if isinstance(theirs, list):
        return type(mine) is list and len(mine) == len(theirs) and all(map(same, mine, theirs))
    return type(mine) is type(theirs) and bool(mine == theirs)


@settings(max_examples=200, deadline=None)
@given(tables())
def test_the_frame_passes_mlflows_enforcement_unchanged(table: Any) -> None:
    """What makes it right to leave that enforcement out."""
    specs, as_json, _ = table
    if not as_json:
        return
    problems = Problems()
    frame = compiled(*specs).inputs.frame(as_json, problems)
    problems.raise_if_any()
    pd.testing.assert_frame_equal(frame, _enforce_schema(frame.copy(deep=True), Schema(specs)))


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | NUMBERS
    | TEXT
    | st.sampled_from(["2026-01-01", "YQ==", 2.0, 1e300]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(list(SCALARS)), st.lists(ANYTHING, min_size=1, max_size=12), st.booleans())
def test_whatever_is_taken_means_the_same_afterwards(kind: DataType, values: list[Any], required: bool) -> None:
    problems = Problems()
    frame = compiled(ColSpec(kind, "x", required=required)).inputs.frame({"x": values}, problems)
    if problems:
        return
    for value, cell in zip(values, frame["x"].tolist(), strict=True):
        if value is None:
            assert not required
            assert cell is None or cell != cell or cell is pd.NaT
        elif kind is DataType.binary:
            assert base64.b64encode(cell).decode() == "".join(value.split())
        elif kind is DataType.datetime:
            assert pd.Timestamp(value) == cell
        elif kind is DataType.float:
            assert cell == float(np.float32(value))
            assert type(value) is not int or cell == value
        else:
            assert cell == value
            assert isinstance(value, bool) == (kind is DataType.boolean)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([k for k in SCALARS if k is not DataType.binary]), st.lists(ANYTHING, min_size=1, max_size=4))
def test_where_mlflows_server_takes_a_column_so_do_we_or_it_changed_it(kind: DataType, values: list[Any]) -> None:
    schema = Schema([ColSpec(kind, "x", required=False)])
    body = {"columns": ["x"], "data": [[v] for v in values]}
    try:
        theirs = _enforce_schema(dataframe_from_parsed_json(json.loads(json.dumps(body)), "split", schema), schema)
    except Exception:
        return  # MLflow refuses: the test before this one says that what we take is exact
    problems = Problems()
    ours = columns_of(
        parse_body(json.dumps({"dataframe_split": body}).encode(), "application/json"),
        compiled(*schema.inputs).inputs,
        problems,
    )
    if not problems:
        # JSON has no way to say null in a column of booleans; MLflow makes false of it.
        if not (kind is DataType.boolean and None in values):
            pd.testing.assert_frame_equal(ours, theirs)
        return
    assert changed(kind, values, theirs["x"].tolist())


def changed(kind: DataType, values: list[Any], cells: list[Any]) -> bool:
    """Whether at least one value is another one, or of another type, than was sent."""
    for value, cell in zip(values, cells, strict=True):
        if kind is DataType.datetime and not isinstance(value, str):
            return True  # nanoseconds since 1970, says MLflow; a guess
        if kind is DataType.datetime and pd.Timestamp(value).isoformat() != value:
            return True  # a date in some other writing
        if value is None and cell is not None and cell == cell:
            return True
        if kind is DataType.string and not isinstance(value, str):
            return True
        if value is not None and (isinstance(value, bool) != isinstance(cell, bool) or cell != value):
            return True
        if isinstance(value, float) and abs(value) > 2**53:
            return True  # a float so large is rounded text already
    return False


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        (DataType.long, 1.5, "1.5 is not a whole number (long)"),
        (DataType.long, True, "true is not a whole number"),
        (DataType.long, "1", '"1" is not a whole number'),
        (DataType.long, 2**63, "does not fit into 64 bits"),
        (DataType.long, None, "is null, but it is required"),
        (DataType.integer, 2**31, "does not fit into 32 bits"),
        (DataType.double, 2**53 + 1, "cannot be held exactly"),
        (DataType.double, math.inf, "too large"),
        (DataType.double, "0.5", "is not a number"),
        (DataType.float, 1e39, "too large"),
        (DataType.float, 2**24 + 1, "cannot be held exactly"),
        (DataType.boolean, 1, "1 is not true or false"),
        (DataType.string, 5, "5 is not text"),
        (DataType.string, {"a": 1}, "is not text"),
        (DataType.binary, "???", "is not base64 text"),
        (DataType.datetime, 1600000000, "is not a date and time"),
        (DataType.datetime, "01/02/2026", "is not a date and time"),
        (DataType.datetime, "2026-02-30", "is not a date and time"),
        (DataType.datetime, "2026-02-03T00:00:00Z", "time zone"),
        (DataType.datetime, "1066-10-14", "between 1678 and 2261"),
        (Array(DataType.long), [1, 2.5, None], "[1] 2.5 is not a whole number (long), [2] is null"),
        (Object([Property("a", DataType.long)]), {"b": 1}, ".a is missing, .b is not known; known are a"),
        (Map(DataType.long), {"k": "v"}, '.k "v" is not a whole number'),
    ],
)
def test_what_does_not_fit_is_named_with_row_and_column(kind: Any, value: Any, words: str) -> None:
    message = refusal(compiled(ColSpec(kind, "x")), {"x": value})
    assert message.startswith("column 'x', row 0: ")
    assert words in message


def test_all_problems_of_a_request_are_told_at_once() -> None:
    signature = compiled(ColSpec("long", "n"), ColSpec("double", "x"), ColSpec("string", "s", required=False))
    message = refusal(signature, {"n": [1, 2.5, None], "s": ["a", 1, None], "z": [0, 0, 0]})
    for words in (
        "column 'z'",
        "column 'x': is missing",
        "'n', row 1: 2.5",
        "'n', row 2: is null",
        "'s', row 1: 1 is not text",
    ):
        assert words in message
    assert "row 0" not in message


def test_a_hundred_problems_are_counted_not_listed() -> None:
    message = refusal(compiled(ColSpec("long", "n")), {"n": ["x"] * 100})
    assert message.endswith("and 75 more")
    assert len(message) < 3000


def test_one_row_or_many() -> None:
    signature = compiled(ColSpec("long", "n"), ColSpec(Array(DataType.long), "a"))
    assert take(signature, {"n": 1, "a": [1, 2]})["a"].tolist() == [[1, 2]]
    assert take(signature, {"n": [1, 2], "a": [[1], [2]]})["a"].tolist() == [[1], [2]]
    assert "different numbers of rows: 'n' 2, 'a' 1" in refusal(signature, {"n": [1, 2], "a": [[1]]})
    only = compiled(ColSpec(Array(DataType.long), "a"))
    assert len(take(only, {"a": [1, 2]})) == 1
    assert len(take(only, {"a": [[1], [2]]})) == 2


def test_parameters_are_the_columns_of_one_row() -> None:
    signature = compiled(ColSpec("long", "n"), ColSpec("string", "s", required=False))
    assert take(signature, None, [1, "a"]).to_dict("records") == [{"n": 1, "s": "a"}]
    assert take(signature, None, [1]).to_dict("records") == [{"n": 1}]
    with pytest.raises(InvalidInput, match="3 parameters for the 2 columns"):
        take(signature, None, [1, "a", 2])


def test_columns_without_names_are_known_by_position() -> None:
    signature = compiled(ColSpec("long"), ColSpec("string"))
    frame = take(signature, None, [1, "a"])
    assert frame.columns.tolist() == [0, 1]
    pd.testing.assert_frame_equal(
        frame, _enforce_schema(pd.DataFrame([[1, "a"]]), Schema([ColSpec("long"), ColSpec("string")]))
    )


def test_a_null_in_optional_booleans_stays_null() -> None:
    assert take(compiled(ColSpec("boolean", "b", required=False)), {"b": [True, None]})["b"].tolist() == [True, None]


def test_anything_goes_where_the_signature_says_any() -> None:
    assert take(compiled(ColSpec(AnyType(), "x")), {"x": {"a": [1, None]}})["x"].tolist() == [{"a": [1, None]}]


PARAMS = ParamSchema(
    [
        ParamSpec("t", "double", 0.5),
        ParamSpec("k", "long", [1], shape=(-1,)),
        ParamSpec("when", "datetime", np.datetime64("2026-01-01T00:00:00")),
        ParamSpec("s", "string", None),
    ]
)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"t": 1},
        {"t": 0.25, "k": [1, 2], "s": "x"},
        {"when": "2026-11-23T01:02:03.5"},
        {"when": "2026-11-23"},
        {"s": None},
    ],
)
def test_params_become_what_mlflow_makes_of_them(params: dict[str, Any]) -> None:
    problems = Problems()
    taken = compiled(ColSpec("long", "x"), params=PARAMS).take_params(params, problems)
    problems.raise_if_any()
    expected = _enforce_params_schema(dict(params), PARAMS)
    assert {k: (type(v), v) for k, v in _enforce_params_schema(taken, PARAMS).items()} == {
        k: (type(v), v) for k, v in expected.items()
    }
    for name in params:
        assert (taken[name], type(taken[name])) == (expected[name], type(expected[name]))


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"q": 1}, "'q'"),
        ({"t": "x"}, "'t'"),
        ({"k": 1}, "'k'"),
        ({"k": [1.5]}, "1.5"),
        ({"when": 5}, "'when'"),
        ({"t": True}, "true"),
    ],
)
def test_params_that_do_not_fit_are_named(params: dict[str, Any], words: str) -> None:
    problems = Problems()
    compiled(ColSpec("long", "x"), params=PARAMS).take_params(params, problems)
    with pytest.raises(InvalidInput, match=words):
        problems.raise_if_any()


def tensors(*specs: TensorSpec) -> Any:
    return compile_signature(ModelSignature(inputs=Schema(list(specs))).to_dict())


DTYPES = ["float64", "float32", "float16", "int64", "int32", "uint8", "bool"]


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(DTYPES), st.lists(st.integers(1, 3), min_size=1, max_size=3))
def test_tensors_are_built_in_their_type_and_shape(data: Any, dtype: str, shape: list[int]) -> None:
    spec = TensorSpec(np.dtype(dtype), [-1, *shape[1:]])
    kinds = {"f": st.floats(width=16, allow_nan=False, allow_infinity=False), "b": st.booleans()}
    elements = kinds.get(np.dtype(dtype).kind, st.integers(0, 100))
    flat = data.draw(st.lists(elements, min_size=math.prod(shape), max_size=math.prod(shape)))
    expected = np.array(flat, dtype=dtype).reshape(shape)
    array = take(tensors(spec), None, [json.loads(json.dumps(np.array(flat, dtype=object).reshape(shape).tolist()))])
    np.testing.assert_array_equal(array, expected)
    assert array.dtype == expected.dtype
    _enforce_schema(array, Schema([spec]))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([[1, 2.5]], "'inputs'[0][1]: 2.5 is not a whole number"),
        ([[1, True]], "true is not a whole number"),
        ([[1, 2, 3]], "has the shape [1, 3], [-1, 2] is wanted"),
        ([[1, 2], [3]], "different lengths"),
        ([1, 2], "is not a list"),
        ([[[1], [2]]], "nested too deep"),
        ([[1, None]], "null is not a whole number"),
        ([[1, 300]], "does not fit into uint8"),
    ],
)
def test_tensors_that_do_not_fit_are_named(value: Any, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        take(tensors(TensorSpec(np.dtype("uint8"), (-1, 2))), None, [value])
    assert words in caught.value.message


def test_text_that_an_array_would_cut_is_refused() -> None:
    with pytest.raises(InvalidInput, match="null character"):
        take(tensors(TensorSpec(np.dtype("str"), (-1,))), None, [["a", "b\0"]])


def test_named_tensors_are_arrays_by_name() -> None:
    signature = tensors(TensorSpec(np.dtype("float32"), (-1, 2), "a"), TensorSpec(np.dtype("int64"), (-1,), "b"))
    taken = take(signature, {"b": [1], "a": [[1, 2]]})
    assert list(taken) == ["a", "b"]
    assert (taken["a"].dtype, taken["b"].dtype) == (np.float32, np.int64)
    with pytest.raises(InvalidInput, match=r"'c'.*'b': is missing"):
        take(signature, {"a": [[1, 2]], "c": 1})


SPLIT = {"columns": ["n", "s"], "data": [[1, "a"], [2, "b"]]}
RECORDS = [{"n": 1, "s": "a"}, {"n": 2, "s": "b"}]


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_split": SPLIT},
        {"dataframe_split": {"columns": ["s", "n"], "data": [["a", 1], ["b", 2]], "index": [0, 1]}},
        {"dataframe_records": RECORDS},
        {"inputs": RECORDS},
        {"instances": RECORDS},
        {"inputs": {"n": [1, 2], "s": ["a", "b"]}},
        {"instances": {"n": [1, 2], "s": ["a", "b"]}},
    ],
)
def test_every_dialect_gives_the_same_frame(body: dict[str, Any]) -> None:
    problems = Problems()
    signature = compiled(ColSpec("long", "n"), ColSpec("string", "s"))
    frame = columns_of(parse_body(json.dumps(body).encode(), "application/json"), signature.inputs, problems)
    problems.raise_if_any()
    pd.testing.assert_frame_equal(frame, pd.DataFrame(RECORDS), check_index_type=False)


def test_csv_is_read_by_the_signature() -> None:
    signature = compiled(
        ColSpec("long", "n"),
        ColSpec("string", "s", required=False),
        ColSpec("boolean", "b"),
        ColSpec("double", "x", required=False),
    )
    problems = Problems()
    body = parse_body(b'n,s,b,x\n1,NA,true,1e3\n2,"a,""b""\nc",False,\n', "text/csv; charset=utf-8")
    frame = columns_of(body, signature.inputs, problems)
    problems.raise_if_any()
    assert frame["s"].tolist() == ["NA", 'a,"b"\nc']
    assert frame["b"].tolist() == [True, False]
    assert frame["x"].tolist()[0] == 1000.0
    assert math.isnan(frame["x"].tolist()[1])
    columns_of(parse_body(b"n,b\n1.5,yes\n", "text/csv"), signature.inputs, problems)
    with pytest.raises(InvalidInput, match=r"'n', row 0: 1.5 is not.*'b', row 0: \"yes\" is not"):
        problems.raise_if_any()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"inputs": [[1, 2]]}, [[1, 2]]),
        ({"instances": [[1, 2], [3, 4]]}, [[1, 2], [3, 4]]),
        ({"dataframe_split": {"data": [[1, 2], [3, 4]]}}, [[1, 2], [3, 4]]),
        ({"dataframe_records": [{"a": 1, "b": 2}]}, [[1, 2]]),
    ],
)
def test_tensors_come_in_every_dialect(body: dict[str, Any], expected: Any) -> None:
    problems = Problems()
    signature = tensors(TensorSpec(np.dtype("float64"), (-1, 2)))
    array = tensors_of(parse_body(json.dumps(body).encode(), "application/json"), signature.inputs, problems)
    problems.raise_if_any()
    np.testing.assert_array_equal(array, np.array(expected, dtype="float64"))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "exactly one of"),
        ({"inputs": [], "instances": []}, "exactly one of"),
        ({"dataframe_split": []}, "must be an object"),
        ({"dataframe_split": {"data": [[1]]}}, "must hold `columns`"),
        ({"dataframe_split": {"columns": ["n"], "data": [[1, 2]]}}, "row 0: has 2 cells, there are 1 columns"),
        ({"dataframe_split": {"columns": ["n", "n"], "data": []}}, "two columns of the same name"),
        ({"dataframe_split": {"columns": ["n"], "data": [[1]], "index": [1, 2]}}, "2 labels for 1 rows"),
        ({"dataframe_records": {"n": 1}}, "list of objects"),
        ({"dataframe_records": [{"n": 1}, {}]}, "row 1: column 'n' is missing"),
        ({"inputs": {"m": 1}}, "column 'm'"),
        ({"inputs": {"n": 1}, "params": []}, "`params` must be an object"),
    ],
)
def test_bodies_that_are_no_dialect_are_refused(body: dict[str, Any], words: str) -> None:
    problems = Problems()
    with pytest.raises(InvalidInput) as caught:
        columns_of(
            parse_body(json.dumps(body).encode(), "application/json"), compiled(ColSpec("long", "n")).inputs, problems
        )
        problems.raise_if_any()
    assert words in caught.value.message
