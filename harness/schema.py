"""A model's signature, compiled once into an exact check that builds the frame or the arrays in their final types.

What it refuses, MLflow would have changed in silence or refused itself; what it builds, MLflow's own enforcement
leaves as it is. Every problem of a request is reported at once, with its row and column.
"""

from __future__ import annotations

import copy
import json
from typing import Any, Mapping, NamedTuple, Sequence

from .kinds import kind_of
from .params import Params, compile_params
from .problems import Mismatch, Problems, Unknown, show
from .scalars import Kind, Scalar
from .tables import Table, block_of
from .tensors import Tensor

__all__ = ["Columns", "Hinted", "Layout", "Signature", "Tensors", "compile_signature"]


class Column:
    """One column of a signature; `name` is its position where the signature has no names."""

    __slots__ = ("kind", "name", "required")

    def __init__(self, name: str, kind: Kind, required: bool) -> None:
        self.name = name
        self.kind = kind
        self.required = required


class Layout(NamedTuple):
    """What a dialect says beside the cells.

    Attributes
    ----------
    index : list or None
        Labels of the rows.
    labels : list or None
        Labels of the columns, where the signature has no names for them.
    arrays : bool
        Whether a list in a cell becomes an array, as MLflow has it for `inputs` and `instances`.
    """

    index: Sequence[Any] | None = None
    labels: Sequence[Any] | None = None
    arrays: bool = False


PLAIN = Layout()
_LISTS_AND_NULLS = frozenset((list, dict, type(None)))


class Columns:
    """A signature of columns.

    Parameters
    ----------
    columns : sequence of Column
    named : bool
        Whether the signature names its columns; if not they are known by their positions.
    """

    def __init__(self, columns: Sequence[Column], *, named: bool) -> None:
        self.columns = columns
        self.named = named
        self.names = [column.name for column in columns]
        self._known = set(self.names)
        self._depths = {column.name: column.kind.depth for column in columns}
        self._flat = named and all(isinstance(column.kind, Scalar) for column in columns)
        self._index: Any = None
        #: What `frame` makes of a table: the frame; `unbuilt` leaves it as it is.
        self._finish = self.build

    def unbuilt(self) -> Columns:
        """Return the same check, which gives a `Table` instead of a frame."""
        other = copy.copy(self)
        other._finish = lambda table: table
        return other

    def is_flat_row(self, data: Mapping[str, Any]) -> bool:
        """Whether data is one row with a value of some scalar type for every column, to be checked with others."""
        return self._flat and data.keys() == self._known and not _LISTS_AND_NULLS.intersection(map(type, data.values()))

    def of_call(self, data: Mapping[str, Any] | None, parameters: Sequence[Any] | None, problems: Problems) -> Any:
        """Return the frame of a request to /model: one row, or many where every value is a list."""
        if parameters is not None:
            if len(parameters) > len(self.columns):
                problems.add("", f"{len(parameters)} parameters for the {len(self.columns)} columns {self._listed()}")
            data = dict(zip(self.names, parameters))
        return self.of_cells(data or {}, problems)

    def of_cells(self, data: Mapping[str, Any], problems: Problems, layout: Layout = PLAIN) -> Any:
        """Return the frame of one row, or of many where every value is a list."""
        if self._holds_many_rows(data):
            return self.frame(data, problems, layout=layout)
        return self.frame({name: [value] for name, value in data.items()}, problems, count=1, layout=layout)

    def frame(
        self, data: Mapping[str, Sequence[Any]], problems: Problems, *, count: int = 0, layout: Layout = PLAIN
    ) -> Any:
        """Return the ``pandas.DataFrame`` for lists of cells, in the signature's order; None where there are problems.

        Parameters
        ----------
        data : mapping of str to sequence
            Cells of each column, decoded JSON.
        problems : Problems
            Gets what is wrong.
        count : int
            Number of rows, where no column tells it.
        layout : Layout
        """
        self._check_names(data, problems)
        self._check_lengths(data, problems)
        cells = {}
        for column in self.columns:
            if column.name in data:
                values = data[column.name]
                place = f"column {column.name!r}"
                cells[column.name] = column.kind.column(
                    values, place=place, required=column.required, problems=problems
                )
                if layout.arrays and column.kind.depth and not problems:
                    cells[column.name] = column.kind.as_arrays(cells[column.name])
        if problems:
            return None
        rows = len(next(iter(cells.values()))) if cells else count
        return self._finish(Table(cells, rows, layout, self._joins_as(cells, layout)))

    def build(self, table: Table) -> Any:
        """Return the ``pandas.DataFrame`` of a table."""
        import pandas

        cells, layout = table.cells, table.layout
        if layout.index is None and self.named and len(cells) == len(self.names):
            block = block_of(table)
            if block is not None:
                if self._index is None:
                    self._index = pandas.Index(self.names)
                return pandas.DataFrame(block.T, columns=self._index.view(), copy=False)
        index = layout.index if layout.index is not None or cells else range(table.rows)
        frame = pandas.DataFrame(cells, index=index)
        if not self.named:
            labels = layout.labels
            frame.columns = labels if labels is not None else pandas.RangeIndex(len(frame.columns))
        return frame

    def _joins_as(self, cells: Mapping[str, Any], layout: Layout) -> Any:
        """Return what another request's table must have the same to be joined; None where it must stay alone.

        A column whose type depends on its values would get another one from its neighbours.
        """
        if layout.index is not None or not cells:
            return None
        for column in self.columns:
            values = cells.get(column.name)
            if column.kind.name == "any" or (values is not None and not column.kind.is_settled(values)):
                return None
        return (tuple(cells), tuple(map(str, layout.labels)) if layout.labels is not None else None, layout.arrays)

    def check_cells(self, data: Mapping[str, Any], problems: Problems) -> None:
        """Check one row that goes to the model as it came, such as a language model's `messages`."""
        self._check_names(data, problems)
        for column in self.columns:
            if column.name not in data:
                continue
            value = data[column.name]
            for cell in value if isinstance(column.kind, Scalar) and isinstance(value, list) else [value]:
                if cell is None and not column.required:
                    continue
                try:
                    column.kind.take(cell)
                except Mismatch as mismatch:
                    problems.add(f"column {column.name!r}", str(mismatch))

    def _check_names(self, data: Mapping[str, Any], problems: Problems) -> None:
        for name in data:
            if name not in self._known:
                problems.add(f"column {name!r}", f"is not in the model's signature, which has {self._listed()}")
        for column in self.columns:
            if column.required and column.name not in data:
                problems.add(f"column {column.name!r}", "is missing")

    def _check_lengths(self, data: Mapping[str, Sequence[Any]], problems: Problems) -> None:
        lengths = {name: len(values) for name, values in data.items()}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{name!r} {length}" for name, length in lengths.items())
            problems.add("", f"the columns have different numbers of rows: {told}")

    def _holds_many_rows(self, data: Mapping[str, Any]) -> bool:
        return bool(data) and all(_deeper(value, self._depths.get(name, 0)) for name, value in data.items())

    def _listed(self) -> str:
        shown = ", ".join(self.names[:30])
        return shown + (f" and {len(self.names) - 30} more" if len(self.names) > 30 else "")

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of one row."""
        properties = {}
        for column in self.columns:
            schema = column.kind.schema()
            properties[column.name] = schema if column.required else dict(schema, nullable=True)
        required = [column.name for column in self.columns if column.required]
        document: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
        return dict(document, required=required) if required else document


class Tensors:
    """A signature of tensors: one without a name, or several with."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tensors
        self.named = tensors[0].name is not None
        self.names = [tensor.name if tensor.name is not None else "inputs" for tensor in tensors]

    def table(self, data: Any) -> Table:
        """Return a request's array, or its arrays by name, as a table."""
        cells = data if self.named else {self.names[0]: data}
        lengths = {array.shape[0] if array.ndim else 0 for array in cells.values()}
        key = tuple((name, array.dtype.str, array.shape[1:]) for name, array in cells.items())
        return Table(cells, min(lengths), PLAIN, key if len(lengths) == 1 else None)

    def build(self, table: Table) -> Any:
        return table.cells if self.named else table.cells[self.names[0]]

    def of_call(self, data: Mapping[str, Any] | None, parameters: Sequence[Any] | None, problems: Problems) -> Any:
        """Return the array, or the arrays by name, of a request to /model; the only nameless one is `inputs`."""
        if parameters is not None:
            if len(parameters) > len(self.tensors):
                problems.add("", f"{len(parameters)} parameters for {len(self.tensors)} tensor(s)")
            data = dict(zip(self.names, parameters))
        assert data is not None
        arrays = self.arrays(data, problems)
        return arrays if self.named or problems else arrays[self.names[0]]

    def arrays(self, data: Mapping[str, Any], problems: Problems) -> dict[str, Any]:
        for name in data:
            if name not in self.names:
                problems.add(f"input {name!r}", f"is not in the model's signature, which has {', '.join(self.names)}")
        taken = {}
        for name, tensor in zip(self.names, self.tensors):
            if name in data:
                taken[name] = tensor.array(data[name], f"input {name!r}", problems)
            else:
                problems.add(f"input {name!r}", "is missing")
        return taken

    def schema(self) -> dict[str, Any]:
        properties = {name: tensor.schema() for name, tensor in zip(self.names, self.tensors)}
        return {"type": "object", "properties": properties, "required": self.names, "additionalProperties": False}


class Hinted:
    """A signature that came from a Python type hint: a list of elements, which the model checks and converts itself.

    The check here only finds what the model's own one (pydantic's) would take in silence.
    """

    def __init__(self, kind: Kind) -> None:
        self.kind = kind

    def of_call(self, data: Mapping[str, Any] | None, parameters: Sequence[Any] | None, problems: Problems) -> Any:
        """Return the list for a request to /model: `data` is one element, or holds the whole list as `inputs`."""
        if parameters is not None:
            elements: Any = list(parameters)
        elif list(data or ()) == ["inputs"] and isinstance((data or {})["inputs"], list):
            elements = (data or {})["inputs"]
        else:
            elements = [data]
        return self.check(elements, problems)

    def check(self, elements: Any, problems: Problems) -> Any:
        if not isinstance(elements, list):
            problems.add("inputs", f"{show(elements)} is not a list")
            return None
        for row, element in enumerate(elements):
            try:
                self.kind.take(element)
            except Mismatch as mismatch:
                problems.add(f"inputs, row {row}", str(mismatch))
        return elements

    def schema(self) -> dict[str, Any]:
        return self.kind.schema()


class Signature:
    """A compiled signature.

    Attributes
    ----------
    inputs : Columns, Tensors, Hinted or None
    params : Params or None
        None where the model takes none.
    """

    def __init__(self, inputs: Any, params: Params | None) -> None:
        self.inputs = inputs
        self.params = params

    def take_params(self, params: Mapping[str, Any] | None, problems: Problems) -> dict[str, Any] | None:
        if not params:
            return None
        if self.params is None:
            for name in params:
                problems.add(f"param {name!r}", "this model takes no params")
            return None
        return self.params.take(params, problems)


def compile_signature(document: Mapping[str, Any] | None, *, hinted: bool = False) -> Signature:
    """Compile what an MLmodel file holds as ``signature``.

    Parameters
    ----------
    document : mapping or None
        ``inputs`` and ``params`` as JSON text, or absent.
    hinted : bool
        Whether the signature came from a type hint.

    Raises
    ------
    problems.Unknown
        Naming the type that only MLflow itself can check.
    """
    inputs = json.loads((document or {}).get("inputs") or "null")
    params = json.loads((document or {}).get("params") or "null")
    return Signature(_inputs(inputs, hinted), compile_params(params) if params else None)


def _inputs(specs: Sequence[Mapping[str, Any]] | None, hinted: bool) -> Any:
    if not specs:
        return None
    if specs[0].get("type") == "tensor":
        return Tensors([Tensor(s.get("name"), s["tensor-spec"]["dtype"], s["tensor-spec"]["shape"]) for s in specs])
    if hinted:
        if len(specs) != 1:
            raise Unknown("a type hint with several inputs")
        return Hinted(kind_of(specs[0], complete=False))
    named = specs[0].get("name") is not None
    columns = []
    for position, spec in enumerate(specs):
        # Before MLflow 2.9 a column that need not be there was `optional`, later it is not `required`.
        required = spec.get("required", not spec.get("optional", False))
        columns.append(Column(spec["name"] if named else str(position), kind_of(spec), required))
    return Columns(columns, named=named)


def _deeper(value: Any, depth: int) -> bool:
    """Whether a value is a list of cells of that depth, not one cell."""
    if not isinstance(value, list):
        return False
    if depth == 0 or not value:
        return depth == 0
    return _deeper(value[0], depth - 1)
