"""The scalar types of MLflow signatures, each with an exact check of decoded JSON.

A value is taken only if it means the same afterwards: 1.5 is no long, true is no number, 2**53 + 1 is no double. A
float32 takes the nearest value to what was written, as every reader of decimals does. What a kind gives is what
MLflow's own enforcement would have made of it, so that a model sees no difference.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from typing import Any, Sequence

from .problems import Mismatch, Problems, show

__all__ = ["SCALARS", "Kind", "Scalar"]

_EXACT = 1 << 53
_ISO = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?)?(Z|[+-]\d\d:?\d\d)?", re.ASCII
)
_NUMBER = re.compile(r"[+-]?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?", re.ASCII)


class Kind:
    """One type. Methods to write: `take`, `schema`; `column` where a column has a dtype of its own.

    Attributes
    ----------
    name : str
        MLflow's word for it.
    depth : int
        How many levels of lists a value has.
    """

    name = ""
    depth = 0

    def take(self, value: Any) -> Any:
        """Return a value inside an object or a map as MLflow would have it.

        Raises
        ------
        Mismatch
        """
        raise NotImplementedError

    def item(self, value: Any) -> Any:
        """Return a value inside a list, which MLflow leaves as Python's own."""
        return self.take(value)

    def parameter(self, value: Any) -> Any:
        """Return an inference parameter, which MLflow makes Python's own."""
        return self.item(value)

    def column(self, values: Sequence[Any], *, place: str, required: bool, problems: Problems) -> Any:
        """Return the cells of a column, fit for ``pandas.DataFrame``.

        Parameters
        ----------
        values : sequence
            One decoded JSON value a row.
        place : str
            What to call the column in a problem.
        required : bool
            Whether nulls are problems.
        """
        cells = []
        for row, value in enumerate(values):
            if value is None and not self._takes_null(required):
                problems.add(f"{place}, row {row}", "is null, but it is required")
                continue
            try:
                cells.append(None if value is None else self.take(value))
            except Mismatch as mismatch:
                problems.add(f"{place}, row {row}", str(mismatch))
        return cells

    def is_settled(self, cells: Any) -> bool:
        """Whether a column of these cells has the type that it has among any others."""
        return not any(cell is None for cell in cells)

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema."""
        raise NotImplementedError

    def _takes_null(self, required: bool) -> bool:
        return not required


class Scalar(Kind):
    """A type of which a column is one array."""

    dtype = ""
    #: What stands for null in an array of `dtype`; None where nothing can.
    null: Any = None
    wanted = ""

    def take(self, value: Any) -> Any:
        import numpy

        return numpy.dtype(self.dtype).type(self.item(value))

    def refuse(self, value: Any) -> Mismatch:
        return Mismatch(f"{show(value)} is not {self.wanted} ({self.name})")

    def column(self, values: Sequence[Any], *, place: str, required: bool, problems: Problems) -> Any:
        import numpy

        whole = self._at_once(values, numpy) if len(values) > 8 else None
        if whole is not None:
            return whole
        cells: list[Any] = []
        good = True
        for row, value in enumerate(values):
            try:
                if value is None:
                    cells.append(self._null(required))
                else:
                    cells.append(self.item(value))
            except Mismatch as mismatch:
                good = False
                problems.add(f"{place}, row {row}", str(mismatch))
        return self._array(cells, numpy) if good else cells

    def is_settled(self, cells: Any) -> bool:
        return getattr(cells, "dtype", None) == self.dtype if self.dtype else super().is_settled(cells)

    def _at_once(self, values: Sequence[Any], numpy: Any) -> Any:
        """Return the column where a look at the types is enough to know that it fits, else None."""
        return None

    def _array(self, cells: list[Any], numpy: Any) -> Any:
        return numpy.array(cells, dtype=self.dtype)

    def read_text(self, text: str) -> Any:
        """Return what a cell of CSV says, as JSON would have it; text that says nothing of the kind stays text."""
        return text

    def _null(self, required: bool) -> Any:
        if required:
            raise Mismatch("is null, but it is required")
        if self.null is None:
            raise Mismatch(f"is null, which a column of type {self.name} cannot hold; leave the whole column out")
        return self.null


class _Boolean(Scalar):
    name, dtype, wanted = "boolean", "bool", "true or false"

    def read_text(self, text: str) -> Any:
        return {"true": True, "false": False}.get(text.lower(), text)

    def item(self, value: Any) -> Any:
        if value is True or value is False:
            return value
        raise self.refuse(value)

    def _null(self, required: bool) -> Any:
        return super()._null(required) if required else None

    def _array(self, cells: list[Any], numpy: Any) -> Any:
        # An array of bool would make false of null.
        return numpy.array(cells, dtype=object if None in cells else bool)

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean"}


class _Whole(Scalar):
    bits = 64

    def read_text(self, text: str) -> Any:
        return _number(text)

    def item(self, value: Any) -> Any:
        if type(value) is float and value.is_integer() and abs(value) <= _EXACT:
            value = int(value)
        if type(value) is not int:
            raise self.refuse(value)
        if not -(1 << self.bits - 1) <= value < 1 << self.bits - 1:
            raise Mismatch(f"{show(value)} does not fit into {self.bits} bits ({self.name})")
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "integer", "format": f"int{self.bits}"}


class _Integer(_Whole):
    name, dtype, wanted, bits = "integer", "int32", "a whole number", 32


class _Long(_Whole):
    name, dtype, wanted = "long", "int64", "a whole number"

    def _at_once(self, values: Sequence[Any], numpy: Any) -> Any:
        if set(map(type, values)) != {int}:
            return None
        try:
            return numpy.array(values, dtype=self.dtype)
        except OverflowError:
            return None


class _Double(Scalar):
    name, dtype, wanted, null = "double", "float64", "a number", math.nan

    def read_text(self, text: str) -> Any:
        return _number(text)

    def item(self, value: Any) -> Any:
        if type(value) is float:
            if math.isfinite(value):
                return value
            raise Mismatch(f"the number is too large ({self.name})")
        if type(value) is int:
            if -_EXACT <= value <= _EXACT or _exact_float(value):
                return float(value)
            raise Mismatch(f"{show(value)} cannot be held exactly ({self.name})")
        raise self.refuse(value)

    def _at_once(self, values: Sequence[Any], numpy: Any) -> Any:
        if set(map(type, values)) != {float}:
            return None
        with numpy.errstate(over="ignore"):
            array = numpy.array(values, dtype=self.dtype)
        return array if numpy.isfinite(array).all() else None

    def schema(self) -> dict[str, Any]:
        return {"type": "number", "format": self.name}


class _Float(_Double):
    name, dtype = "float", "float32"

    def parameter(self, value: Any) -> Any:
        return super().item(value)  # MLflow keeps Python's own float here

    def item(self, value: Any) -> Any:
        import numpy

        number = super().item(value)
        with numpy.errstate(over="ignore"):
            nearest = float(numpy.float32(number))
        if math.isinf(nearest):
            raise Mismatch(f"{show(value)} is too large ({self.name})")
        if type(value) is int and nearest != number:
            raise Mismatch(f"{show(value)} cannot be held exactly ({self.name})")
        return nearest


class _String(Scalar):
    name, wanted = "string", "text"

    def take(self, value: Any) -> Any:
        return self.item(value)

    def item(self, value: Any) -> Any:
        if type(value) is str:
            return value
        raise self.refuse(value)

    def _null(self, required: bool) -> Any:
        return super()._null(required) if required else None

    def _array(self, cells: list[Any], numpy: Any) -> Any:
        return cells  # pandas has its own type for text, another one in each release

    def schema(self) -> dict[str, Any]:
        return {"type": "string"}


class _Binary(_String):
    name, wanted = "binary", "base64 text"

    def item(self, value: Any) -> Any:
        if type(value) is not str:
            raise self.refuse(value)
        try:
            return base64.b64decode("".join(value.split()), validate=True)
        except (binascii.Error, ValueError):
            raise self.refuse(value) from None

    def _array(self, cells: list[Any], numpy: Any) -> Any:
        array = numpy.empty(len(cells), dtype=object)
        array[:] = cells
        return array

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "format": "byte"}


class _Datetime(Scalar):
    name, dtype, wanted, null = "datetime", "datetime64[ns]", "a date and time as in 2026-11-23T01:02:03.5", "NaT"

    def take(self, value: Any) -> Any:
        import pandas

        return pandas.Timestamp(self.item(value))

    def item(self, value: Any) -> Any:
        match = _ISO.fullmatch(value) if type(value) is str else None
        if match is None:
            raise self.refuse(value)
        if match.group(8):
            raise Mismatch(f"{show(value)} has a time zone, which the column cannot hold; send the time without one")
        if not 1678 <= int(match.group(1)) <= 2261:
            raise Mismatch(f"{show(value)} is not between 1678 and 2261 ({self.name})")
        import numpy

        try:
            return numpy.datetime64(value.replace(" ", "T"), "ns")
        except ValueError:
            raise self.refuse(value) from None

    def parameter(self, value: Any) -> Any:
        self.item(value)
        import numpy

        moment = numpy.datetime64(value.replace(" ", "T")).item()
        if isinstance(moment, int):
            raise Mismatch(f"{show(value)} has more than six digits of a second")
        return moment

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "format": "date-time"}


SCALARS = {k.name: k for k in (_Boolean(), _Integer(), _Long(), _Float(), _Double(), _String(), _Binary(), _Datetime())}


def _number(text: str) -> Any:
    if not _NUMBER.fullmatch(text.strip()):
        return text
    return json.loads(text.strip().lstrip("+"))


def _exact_float(number: int) -> bool:
    try:
        return int(float(number)) == number
    except OverflowError:
        return False
