"""Checked rows before they are a frame or arrays, and the answers to them: what is joined, and taken apart again."""

from __future__ import annotations

from typing import Any, Mapping, NamedTuple, Sequence

__all__ = ["Table", "block_of", "join", "parts_of"]


class Table(NamedTuple):
    """The rows of one request, or of many.

    Attributes
    ----------
    cells : dict
        For each column its cells, an array or a list; for each tensor its array.
    rows : int
    layout : schema.Layout
    key : object
        Tables with the same key can be joined; None where this one has to stay alone.
    """

    cells: Mapping[str, Any]
    rows: int
    layout: Any
    key: Any

    def part(self, begin: int, end: int) -> Table:
        """Return some of the rows."""
        return self._replace(cells={name: c[begin:end] for name, c in self.cells.items()}, rows=end - begin)


def join(tables: Sequence[Table]) -> Table:
    """Return one table of the rows of several, in their order; they have the same key."""
    if len(tables) == 1:
        return tables[0]
    import numpy

    cells = {}
    for name, first in tables[0].cells.items():
        columns = [table.cells[name] for table in tables]
        if isinstance(first, list):
            cells[name] = [cell for column in columns for cell in column]
        else:
            cells[name] = numpy.concatenate(columns)
    return tables[0]._replace(cells=cells, rows=sum(table.rows for table in tables))


def block_of(table: Table) -> Any:
    """Return all columns as one array, laid out as pandas itself would; None where they have not one numeric type."""
    import numpy

    arrays = list(table.cells.values())
    if any(type(array) is not numpy.ndarray for array in arrays):
        return None
    dtype = arrays[0].dtype
    if dtype.kind not in "if" or any(array.dtype != dtype for array in arrays):
        return None
    block = numpy.empty((len(arrays), table.rows), dtype=dtype)
    for position, array in enumerate(arrays):
        block[position] = array
    return block


def parts_of(result: Any, counts: Sequence[int]) -> list[Any] | None:
    """Take the answer to joined rows apart, so many rows for each; None where it has not one entry for each row.

    Arrays, frames, series and lists are taken apart, and dictionaries of them.
    """
    if isinstance(result, dict):
        columns = {key: parts_of(value, counts) for key, value in result.items()}
        if not columns or any(parts is None for parts in columns.values()):
            return None
        return [{key: parts[n] for key, parts in columns.items()} for n in range(len(counts))]  # type: ignore[index]
    kind = _kind_of(result)
    if not kind or len(result) != sum(counts):
        return None
    if kind == "array" and result.dtype.kind in "biufOU":
        result = result.tolist()  # once, instead of once for each part
    source = result.iloc if kind == "table" else result
    parts, begin = [], 0
    for count in counts:
        parts.append(source[begin : begin + count])
        begin += count
    return parts


def _kind_of(result: Any) -> str:
    if type(result) is list:
        return "list"
    name = f"{type(result).__module__.partition('.')[0]}.{type(result).__name__}"
    if name == "numpy.ndarray":
        return "array" if result.ndim else ""
    return "table" if name in ("pandas.DataFrame", "pandas.Series") else ""
