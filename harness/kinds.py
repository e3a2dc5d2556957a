"""The types of MLflow signatures that hold others, and the way from a signature's JSON to its types."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

from .problems import Mismatch, Unknown, joined, show
from .scalars import SCALARS, Kind, Scalar

__all__ = ["kind_of"]


class _Any(Kind):
    name = "any"

    def take(self, value: Any) -> Any:
        return value

    def _takes_null(self, required: bool) -> bool:
        return True

    def schema(self) -> dict[str, Any]:
        return {}


class _Array(Kind):
    name = "array"

    def __init__(self, items: Kind) -> None:
        self._items = items
        self.depth = items.depth + 1
        self._scalar = isinstance(items, Scalar)

    def take(self, value: Any) -> Any:
        if type(value) is not list:
            raise Mismatch(f"{show(value)} is not a list")
        taken = []
        found = []
        for index, element in enumerate(value):
            try:
                if element is None and not isinstance(self._items, _Any):
                    raise Mismatch("is null")
                taken.append(self._items.item(element))
            except Mismatch as mismatch:
                found.append(f"[{index}] {mismatch}")
        if found:
            raise Mismatch(joined(found))
        return taken

    def as_arrays(self, cells: Sequence[Any]) -> Any:
        """Return the cells as numpy arrays, as MLflow's `inputs` and `instances` have them."""
        import numpy

        dtype = getattr(self._items, "dtype", "") or None
        arrays = numpy.empty(len(cells), dtype=object)
        for row, cell in enumerate(cells):
            # An array of text loses null characters at its values' ends.
            kind = object if any(isinstance(v, str) and v.endswith("\0") for v in cell or ()) else dtype
            arrays[row] = None if cell is None else numpy.array(cell, dtype=kind if cell else None)
        return arrays

    def schema(self) -> dict[str, Any]:
        return {"type": "array", "items": self._items.schema()}


class _Object(Kind):
    name = "object"

    def __init__(self, properties: Mapping[str, tuple[Kind, bool]]) -> None:
        self._properties = properties

    def take(self, value: Any) -> Any:
        if type(value) is not dict:
            raise Mismatch(f"{show(value)} is not an object")
        found = [f".{key} is missing" for key, (_, must) in self._properties.items() if must and key not in value]
        taken = {}
        for key, element in value.items():
            if key not in self._properties:
                found.append(f".{key} is not known; known are {', '.join(self._properties)}")
                continue
            kind, required = self._properties[key]
            try:
                if element is None and required and not isinstance(kind, _Any):
                    raise Mismatch("is null, but it is required")
                taken[key] = None if element is None else kind.take(element)
            except Mismatch as mismatch:
                found.append(f".{key} {mismatch}")
        if found:
            raise Mismatch(joined(found))
        return taken

    def parameter(self, value: Any) -> Any:
        self.take(value)
        return value

    def schema(self) -> dict[str, Any]:
        properties = {
            key: kind.schema() if required else dict(kind.schema(), nullable=True)
            for key, (kind, required) in self._properties.items()
        }
        document: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
        needed = [key for key, (_, required) in self._properties.items() if required]
        if needed:
            document["required"] = needed
        return document


class _Map(Kind):
    name = "map"

    def __init__(self, values: Kind) -> None:
        self._values = values

    def take(self, value: Any) -> Any:
        names = {} if type(value) is not dict else dict.fromkeys(value, (self._values, True))
        if type(value) is not dict:
            raise Mismatch(f"{show(value)} is not an object")
        return _Object(names).take(value)

    def schema(self) -> dict[str, Any]:
        return {"type": "object", "additionalProperties": self._values.schema()}


def kind_of(document: Mapping[str, Any], *, complete: bool = True) -> Kind:
    """Return the kind that a signature's JSON describes.

    Parameters
    ----------
    document : mapping
        ``{"type": …}`` with what belongs to the type.
    complete : bool
        Whether the properties of objects that are called required must be there. Those of a type hint need not: one
        with a default is called required too.

    Raises
    ------
    Unknown
    """
    name = document.get("type")
    if name in SCALARS:
        return SCALARS[name]
    if name == "any":
        return _Any()
    if name == "array":
        return _Array(kind_of(document["items"], complete=complete))
    if name == "map":
        return _Map(kind_of(document["values"], complete=complete))
    if name == "object":
        properties = document["properties"].items()
        required = {key: complete and inner.get("required", True) for key, inner in properties}
        return _Object({key: (kind_of(inner, complete=complete), required[key]) for key, inner in properties})
    raise Unknown(str(name))
