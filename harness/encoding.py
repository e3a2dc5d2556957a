"""Results as JSON: what models return, without importing any of the libraries that they return it in.

numpy arrays and scalars, pandas frames (a list of records), series, dates, Decimal, bytes (base64), sets, enums,
dataclasses and pydantic models all have a form. NaN, infinities, NaT and NA are null. What has none is refused by
the name of its type and its place.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import decimal
import enum
import json
import math
from typing import Any, Callable

from .errors import ModelFailed
from .fastjson import FAST

__all__ = ["encode", "to_jsonable"]


_ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"), ensure_ascii=False)


def encode(document: Any, place: str = "") -> bytes:
    """Return a document as JSON in UTF-8; `place` says where it stands, should something in it have no form.

    Raises
    ------
    ModelFailed
        Naming the type that has no JSON form, and where it stands.
    """
    if FAST is not None:
        try:
            return FAST.dumps(document)
        except TypeError:
            pass
    try:
        text = _ENCODER.encode(document)
    except (TypeError, ValueError, RecursionError):
        # What most models return needs nothing of ours; the walk through everything else is paid here only.
        text = _ENCODER.encode(to_jsonable(document, place))
    return text.encode("utf-8", "backslashreplace")


def to_jsonable(value: Any, place: str = "", depth: int = 0) -> Any:
    """Return a value built of dict, list, str, int, float, bool and None only."""
    kind = type(value)
    if value is None or kind in (str, bool, int):
        return value
    if kind is float:
        return value if math.isfinite(value) else None
    if depth > 200:
        raise _no_form(value, place, "is nested deeper than 200 levels, or holds itself")
    if isinstance(value, dict):
        return {_key(k, place): to_jsonable(v, f"{place}.{k}", depth + 1) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_jsonable(v, f"{place}[{i}]", depth + 1) for i, v in enumerate(value)]
    if isinstance(value, enum.Enum):  # before the type that it may be mixed with, whose text is another
        return to_jsonable(value.value, place, depth + 1)
    for base in kind.__mro__:
        convert = _BY_TYPE.get("{}.{}".format(base.__module__.partition(".")[0], base.__qualname__))
        if convert is not None:
            return to_jsonable(convert(value), place, depth + 1)
    return to_jsonable(_by_shape(value, place), place, depth + 1)


def _by_shape(value: Any, place: str) -> Any:
    """Convert by what a value can do: for libraries that we need not know by name."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if not isinstance(value, type):
        for name in ("model_dump", "toarray", "to_dicts", "tolist", "to_pylist", "numpy", "to_dict", "dict"):
            method = getattr(value, name, None)
            if callable(method):
                try:
                    return method()
                except Exception as error:
                    raise _no_form(value, place, f"could not be converted: {type(error).__name__}") from error
    raise _no_form(value, place, "has no JSON form; return lists, dicts, numbers, text, arrays or frames")


def _no_form(value: Any, place: str, why: str) -> ModelFailed:
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    where = place.lstrip(".") or "the result"
    return ModelFailed(
        f"the model's result cannot be encoded: {where}, of type {name}, {why}", code="RESULT_NOT_ENCODABLE"
    )


def _key(key: Any, place: str) -> Any:
    if isinstance(key, str):
        return str(key)
    if isinstance(key, enum.Enum):
        return _key(key.value, place)
    plain = to_jsonable(key, place + " (a key)")
    if isinstance(plain, (dict, list)):
        raise _no_form(key, place + " (a key)", "cannot be the key of a JSON object")
    return json.dumps(plain) if not isinstance(plain, str) else plain


def _decimal(value: decimal.Decimal) -> Any:
    if not value.is_finite():
        return None
    # A number where a float keeps every digit, text where it would lose some.
    number = float(value)
    return number if decimal.Decimal(repr(number)) == value else str(value)


def _float(value: Any) -> Any:
    number = float(value)
    return number if math.isfinite(number) else None


def _numpy_scalar(value: Any) -> Any:
    kind = value.dtype.kind
    if kind == "M":
        return None if str(value) == "NaT" else str(value)
    if kind == "m":
        return None if str(value) == "NaT" else float(value / type(value)(1, "s"))
    if kind == "f":
        return _float(value)
    if kind == "c":
        raise _no_form(value, "", "has no JSON form")
    return value.item()


def _numpy_array(value: Any) -> Any:
    if value.dtype.kind in "Mm":
        return [_numpy_array(v) if v.ndim else _numpy_scalar(v) for v in value] if value.ndim else value[()]
    if value.dtype.kind == "c":
        raise _no_form(value, "", f"of dtype {value.dtype} has no JSON form")
    return value.tolist()


def _frame(value: Any) -> list[dict[Any, Any]]:
    columns = list(value.columns)
    if len(set(columns)) != len(columns):
        raise _no_form(value, "", f"has columns of the same name: {columns}")
    return value.to_dict(orient="records")


def _iso(value: Any) -> Any:
    return None if value != value else value.isoformat()


_BY_TYPE: dict[str, Callable[[Any], Any]] = {
    "builtins.str": str,
    "builtins.bool": bool,
    "builtins.int": int,
    "builtins.float": float,
    "builtins.bytes": lambda v: base64.b64encode(v).decode("ascii"),
    "builtins.bytearray": lambda v: base64.b64encode(v).decode("ascii"),
    "builtins.memoryview": lambda v: base64.b64encode(v).decode("ascii"),
    "builtins.range": list,
    "builtins.dict_keys": list,
    "builtins.dict_values": list,
    "builtins.dict_items": list,
    "collections.deque": list,
    "datetime.datetime": _iso,
    "datetime.date": datetime.date.isoformat,
    "datetime.time": datetime.time.isoformat,
    "datetime.timedelta": datetime.timedelta.total_seconds,
    "decimal.Decimal": _decimal,
    "uuid.UUID": str,
    "pathlib.PurePath": str,
    "numpy.ndarray": _numpy_array,
    "numpy.generic": _numpy_scalar,
    "pandas.DataFrame": _frame,
    "pandas.Series": lambda v: v.tolist(),
    "pandas.Index": lambda v: v.tolist(),
    "pandas.Categorical": lambda v: v.tolist(),
    "pandas.ExtensionArray": lambda v: v.tolist() if hasattr(v, "tolist") else list(v),
    "pandas.NaTType": lambda _: None,
    "pandas.NAType": lambda _: None,
    "pandas.Period": str,
    "pandas.Interval": str,
}
# Older interpreters and libraries spell a few of these otherwise.
_BY_TYPE["pathlib.Path"] = str
_BY_TYPE["_decimal.Decimal"] = _BY_TYPE["_pydecimal.Decimal"] = _decimal
