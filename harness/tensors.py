"""Tensors of MLflow signatures: nested lists in, one numpy array of the exact type and shape out."""

from __future__ import annotations

from typing import Any, Iterator, Sequence

from .problems import Mismatch, Problems, Unknown, show
from .scalars import SCALARS

__all__ = ["Tensor"]

_EXAMPLES = 5


class Tensor:
    """One tensor of a signature.

    Parameters
    ----------
    name : str or None
    dtype : str
        As numpy writes it.
    shape : sequence of int
        -1 where any length will do.

    Raises
    ------
    Unknown
        For a type that has no exact JSON form here (complex numbers, bytes of fixed length).
    """

    def __init__(self, name: str | None, dtype: str, shape: Sequence[int]) -> None:
        import numpy

        self.name = name
        self.dtype = numpy.dtype(dtype)
        self.shape = tuple(shape)
        if self.dtype.kind not in "biufUOM":
            raise Unknown(f"a tensor of {dtype}")

    def array(self, value: Any, place: str, problems: Problems) -> Any:
        """Return the array for a nested list; None where there are problems, which are added."""
        import numpy

        if self.dtype.kind == "O":
            return self._objects(value, place, problems, numpy)
        if not self._check_shape(value, place, problems):
            return None
        leaves: list[Any] = []
        found = 0
        for position, leaf in _leaves(value, (), len(self.shape)):
            try:
                leaves.append(self._leaf(leaf))
            except Mismatch as mismatch:
                found += 1
                if found <= _EXAMPLES:
                    problems.add(place + "".join(f"[{i}]" for i in position), str(mismatch))
        if found > _EXAMPLES:
            problems.add(place, f"{found - _EXAMPLES} more values do not fit")
        return None if found else numpy.array(leaves, dtype=self.dtype).reshape(_shape_of(value, len(self.shape)))

    def _leaf(self, leaf: Any) -> Any:
        kind, size = self.dtype.kind, self.dtype.itemsize
        if kind in "iu":
            return self._whole(leaf, size, signed=kind == "i")
        if kind == "f" and size < 4:
            return self._half(leaf)
        name = {"b": "boolean", "f": "float" if size == 4 else "double", "U": "string", "M": "datetime"}[kind]
        if leaf is None:
            raise Mismatch("is null")
        if kind == "U" and type(leaf) is str and leaf.endswith("\0"):
            raise Mismatch(f"{show(leaf)} ends with a null character, which an array of text loses")
        return SCALARS[name].item(leaf)

    def _whole(self, leaf: Any, size: int, *, signed: bool) -> int:
        if type(leaf) is float and leaf.is_integer() and abs(leaf) <= 1 << 53:
            leaf = int(leaf)
        if type(leaf) is not int:
            raise Mismatch(f"{show(leaf)} is not a whole number ({self.dtype})")
        bits = 8 * size
        low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
        if not low <= leaf <= high:
            raise Mismatch(f"{show(leaf)} does not fit into {self.dtype}")
        return leaf

    def _half(self, leaf: Any) -> Any:
        import numpy

        number = SCALARS["double"].item(leaf)
        with numpy.errstate(over="ignore"):
            nearest = self.dtype.type(number)
        if not numpy.isfinite(nearest) or (type(leaf) is int and float(nearest) != number):
            raise Mismatch(f"{show(leaf)} cannot be held exactly ({self.dtype})")
        return nearest

    def _objects(self, value: Any, place: str, problems: Problems, numpy: Any) -> Any:
        """Return an array of objects, which hold what JSON gave; numpy alone decides how deep they are nested."""
        try:
            array = numpy.array(value, dtype=object)
        except ValueError:
            array = numpy.empty(len(value), dtype=object)
            array[:] = value
        if self.shape != (-1,) and not _fits(array.shape, self.shape):
            problems.add(place, f"has the shape {list(array.shape)}, {list(self.shape)} is wanted")
            return None
        return array

    def _check_shape(self, value: Any, place: str, problems: Problems) -> bool:
        try:
            shape = _shape_of(value, len(self.shape))
        except Mismatch as mismatch:
            problems.add(place, f"{mismatch}; the shape {list(self.shape)} is wanted")
            return False
        if not _fits(shape, self.shape):
            problems.add(place, f"has the shape {list(shape)}, {list(self.shape)} is wanted")
            return False
        return True

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema."""
        name = {"b": "boolean", "i": "integer", "u": "integer", "f": "number", "U": "string", "M": "string"}
        kind = name.get(self.dtype.kind)
        document: dict[str, Any] = {"type": kind} if kind else {}
        if self.dtype.kind == "M":
            document["format"] = "date-time"
        for length in reversed(self.shape):
            document = {"type": "array", "items": document}
            if length != -1:
                document.update(minItems=length, maxItems=length)
        return document


def _fits(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    return len(shape) == len(wanted) and all(w in (-1, s) for s, w in zip(shape, wanted))


def _shape_of(value: Any, levels: int) -> tuple[int, ...]:
    """Return the shape of a nested list of so many levels.

    Raises
    ------
    Mismatch
        Where it has fewer levels or more, or lists of different lengths beside each other.
    """
    if levels == 0:
        if isinstance(value, list):
            raise Mismatch(f"{show(value)} is nested too deep")
        return ()
    if not isinstance(value, list):
        raise Mismatch(f"{show(value)} is not a list")
    shapes = {_shape_of(element, levels - 1) for element in value}
    if len(shapes) > 1:
        raise Mismatch("lists beside each other have different lengths")
    return (len(value), *(shapes.pop() if shapes else (0,) * (levels - 1)))


def _leaves(value: Any, position: tuple[int, ...], levels: int) -> Iterator[tuple[tuple[int, ...], Any]]:
    if levels == 0:
        yield position, value
        return
    for index, element in enumerate(value):
        yield from _leaves(element, (*position, index), levels - 1)
