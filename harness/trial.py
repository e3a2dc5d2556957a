"""Whether a model answers a row the same alone and among others: tried before its requests are joined."""

from __future__ import annotations

import json
import math
from typing import Any

from .encoding import encode
from .joined import Joined
from .predictor import Input, Predictor, parse_call, summary
from .tables import join, parts_of

__all__ = ["agree", "try_joining"]

#: The last bits of a matrix product depend on its size; those of 32 bits wide networks more so.
_RELATIVE, _ABSOLUTE = 1e-5, 1e-6


def try_joining(predictor: Predictor, body: bytes | None) -> tuple[bool, str]:
    """Let the model answer its example alone, beside a copy of itself, and row by row.

    Parameters
    ----------
    body : bytes or None
        A body of /model or of /invocations.

    Returns
    -------
    (bool, str)
        Whether joining was tried, and what speaks against it.
    """
    if body is None:
        return False, ""
    try:
        example = _prepared(predictor, body)
    except Exception:
        return False, ""  # the warm-up has said what is wrong with it
    if example.key is None:
        return False, ""
    try:
        return True, _compare(predictor.joined, example)
    except BaseException as error:
        return True, f"its example cannot be answered beside a copy of itself: {summary(error)}"


def _prepared(predictor: Predictor, body: bytes) -> Input:
    document = json.loads(body)
    if isinstance(document, dict) and ("data" in document or "parameters" in document):
        return predictor.prepare_call(parse_call(document))
    return predictor.prepare_body(body, "application/json")


def _compare(joined: Joined, example: Input) -> str:
    joined.check([example])
    table, rows = joined.merge([example]), example.rows
    alone = joined.answer(table, example.params)
    both = parts_of(joined.answer(join([table, table]), example.params), [rows, rows])
    each = parts_of(alone, [1] * rows)
    if both is None or each is None:
        return "its answer has not one entry for each row"
    if not all(agree(part, alone) for part in both):
        return "it answers its example otherwise beside a copy of itself"
    for row in {0, rows - 1}:
        single = parts_of(joined.answer(table.part(row, row + 1), example.params), [1])
        if single is None or not agree(single[0], each[row]):
            return "it answers a row of its example otherwise alone"
    return ""


def agree(one: Any, other: Any) -> bool:
    """Whether two answers say the same, but for the last digits of numbers."""
    return _same(json.loads(encode(one)), json.loads(encode(other)))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)
    if type(one) is not type(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    return bool(one == other)
