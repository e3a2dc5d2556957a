"""Which requests of a model can be joined into one prediction, and how: their rows become one table, the answer parts.

Requests are joined that have the same columns of the same types, and equal params. A request with nulls whose column
would get another type among its neighbours, with labels of rows, or without rows, stays alone.
"""

from __future__ import annotations

import json
from typing import Any, Callable, Mapping, Sequence

from .errors import Refusal
from .predictor import Call, Input
from .problems import Problems
from .schema import Columns
from .tables import Table, join, parts_of

__all__ = ["Joined", "reason_against"]


def reason_against(inputs: Any) -> str:
    """Say why requests of this signature cannot be joined; empty where they can."""
    if isinstance(inputs, Columns):
        free = [repr(column.name) for column in inputs.columns if column.kind.name == "any"]
        return f"column {free[0]} may hold anything" if free else ""
    for name, tensor in zip(inputs.names, inputs.tensors):
        if not tensor.shape or tensor.shape[0] != -1:
            return f"the first length of tensor {name!r} is fixed, shape {list(tensor.shape)}: it is no number of rows"
        if tensor.dtype.kind == "O":
            return f"tensor {name!r} may hold anything"
    return ""


class Joined:
    """Joins checked requests of one model.

    Parameters
    ----------
    inputs : Columns or Tensors
    predict : callable
        Gives the model's answer to checked data and params.
    max_rows : int
        No prediction of several requests has more; a request that has more itself stays alone.
    """

    def __init__(self, inputs: Any, predict: Callable[[Any, Any], Any], max_rows: int) -> None:
        self._columns = inputs if isinstance(inputs, Columns) else None
        self._built = inputs
        self.inputs = inputs.unbuilt() if isinstance(inputs, Columns) else inputs
        self._predict = predict
        self.max_rows = max_rows
        self._row_key = (tuple(inputs.names), None, False)

    def take_row(self, alone: Input, data: Mapping[str, Any], params: Any, given: Any) -> bool:
        """Make an input joinable whose data is one plain row; its cells are checked with those of its neighbours."""
        if self._columns is None or not self._columns.is_flat_row(data):
            return False
        alone.row, alone.rows, alone.params = data, 1, params
        alone.key = (self._row_key, _equal(given))
        return True

    def table_of_call(self, call: Call, problems: Problems) -> Any:
        data = self.inputs.of_call(call.data, call.parameters, problems)
        return None if problems else self.table(data)

    def table(self, data: Any) -> Table:
        """Return what the check gave as a table."""
        return data if self._columns is not None else self.inputs.table(data)

    def input(self, table: Table, params: Any, given: Any, wrap: Callable[[Any], Any] | None = None) -> Input:
        """Return a checked request.

        Parameters
        ----------
        table : Table
        params, given : dict or None
            Inference parameters as the model gets them, and as the request has them.
        wrap : callable or None
            Makes the whole answer of the model's.
        """

        def run() -> Any:
            answer = self._predict(self._built.build(table), params)
            return answer if wrap is None else wrap(answer)

        made = Input(run)
        made.table, made.params, made.wrap = table, params, wrap
        if table.key is not None and 0 < table.rows <= self.max_rows:
            made.rows, made.key = table.rows, (table.key, _equal(given))
        return made

    def check(self, inputs: Sequence[Input]) -> dict[Input, Refusal]:
        """Check the rows that are not checked yet, all at once; return what is to be said to those that do not fit."""
        rows = [made for made in inputs if made.table is None]
        refused: dict[Input, Refusal] = {}
        if not rows:
            return refused
        whole = self._table_of(rows)
        if isinstance(whole, Table):
            for at, made in enumerate(rows):
                made.table = whole.part(at, at + 1) if len(rows) < len(inputs) else whole
            return refused
        for made in rows:
            own = self._table_of([made])
            if isinstance(own, Table):
                made.table = own
            else:
                refused[made] = own
        return refused

    def _table_of(self, rows: Sequence[Input]) -> Table | Refusal:
        problems = Problems()
        names = self._built.names
        table = self.inputs.frame({name: [made.row[name] for made in rows] for name in names}, problems)
        try:
            problems.raise_if_any()
        except Refusal as refusal:
            return refusal
        return table

    def merge(self, inputs: Sequence[Input]) -> Table:
        """Return the rows of checked inputs as one table, in their order."""
        first = inputs[0].table
        if all(made.table is first for made in inputs):
            return first
        return join([made.table for made in inputs])

    def answer(self, table: Table, params: Any) -> Any:
        return self._predict(self._built.build(table), params)

    @staticmethod
    def parts(answer: Any, inputs: Sequence[Input]) -> list[Any] | None:
        """Return each input's whole answer; None where the joined one has not an entry for each row."""
        parts = parts_of(answer, [made.rows for made in inputs])
        if parts is None:
            return None
        return [part if made.wrap is None else made.wrap(part) for made, part in zip(inputs, parts)]


def _equal(params: Any) -> str:
    """Return the same text for params that are equal, in their types too."""
    return json.dumps(params, sort_keys=True) if params else ""
