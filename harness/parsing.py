"""JSON bodies."""

from __future__ import annotations

import json
from typing import Any

from .errors import InvalidInput
from .fastjson import FAST

__all__ = ["parse_json"]


def parse_json(body: bytes, *, strict: bool = True) -> Any:
    """Return what a body holds.

    Parameters
    ----------
    body : bytes
        JSON in UTF-8 (or another UTF).
    strict : bool
        Whether NaN and infinities, which are no JSON, are refused; Python and MLflow take them.

    Raises
    ------
    InvalidInput
        It is not JSON.
    """
    if FAST is not None:
        try:
            return FAST.loads(body)
        except ValueError:
            pass  # the standard library takes it, or says what is wrong
    try:
        return (_STRICT if strict else _LENIENT).decode(body.decode(json.detect_encoding(body), "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"the body is not JSON: {error}", code="INVALID_JSON") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value; use null")


# `json.loads` would make a decoder for each body.
_STRICT = json.JSONDecoder(parse_constant=_no_constant)
_LENIENT = json.JSONDecoder()
