"""JSON bodies."""

from __future__ import annotations

import json
from typing import Any

from .errors import InvalidInput

__all__ = ["parse_json"]


def parse_json(body: bytes) -> Any:
    """Return what a body holds.

    Raises
    ------
    InvalidInput
        It is not JSON; NaN and infinities are none.
    """
    try:
        return json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"the body is not JSON: {error}", code="INVALID_JSON") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value; use null")
