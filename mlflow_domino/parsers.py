"""Parsers of values that came from a caller: as strings, which is all that MLflow's CLI can pass, or as the type itself.

A parser raises ValueError with what is wanted; its docstring is the type as the help shows it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["Parser", "boolean", "choice", "decimal", "listing", "size", "text", "whole"]

Parser = Callable[[Any], Any]
_SIZES = {"": 1, "b": 1, "k": 1000, "kb": 1000, "ki": 1 << 10, "kib": 1 << 10, "m": 10**6, "mb": 10**6, "mi": 1 << 20,
          "mib": 1 << 20, "g": 10**9, "gb": 10**9, "gi": 1 << 30, "gib": 1 << 30}  # fmt: skip


def whole(low: int, high: int) -> Parser:
    def parse_whole(value: Any) -> int:
        if isinstance(value, bool) or not re.fullmatch(r"[+-]?\d{1,18}", str(value).strip()):
            raise ValueError(f"a whole number from {low} to {high} is wanted")
        number = int(value)
        if not low <= number <= high:
            raise ValueError(f"a whole number from {low} to {high} is wanted")
        return number

    parse_whole.__doc__ = f"whole number, {low}-{high}"
    return parse_whole


def decimal(low: float, high: float) -> Parser:
    def parse_decimal(value: Any) -> float:
        try:
            number = float(value) if not isinstance(value, bool) else float("nan")
        except (TypeError, ValueError):
            number = float("nan")
        if not low <= number <= high:  # also refuses NaN
            raise ValueError(f"a number from {low:g} to {high:g} is wanted, without a unit")
        return number

    parse_decimal.__doc__ = f"number, {low:g}-{high:g}"
    return parse_decimal


def boolean(value: Any) -> bool:
    """True or false"""
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in ("true", "1"):
        return True
    if text in ("false", "0"):
        return False
    raise ValueError("true or false is wanted")


def size(low: int, high: int) -> Parser:
    def parse_size(value: Any) -> int:
        match = re.fullmatch(r"(\d{1,15})\s*([a-zA-Z]*)", str(value).strip())
        if isinstance(value, bool) or not match or match[2].lower() not in _SIZES:
            raise ValueError("a size is wanted, such as 512Mi, 2GB or a number of bytes")
        number = int(match[1]) * _SIZES[match[2].lower()]
        if not low <= number <= high:
            raise ValueError(f"a size from {low} to {high} bytes is wanted")
        return number

    parse_size.__doc__ = "size, such as 10Mi"
    return parse_size


def text(pattern: str, wanted: str) -> Parser:
    def parse_text(value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value, re.DOTALL):
            raise ValueError(f"{wanted} is wanted")
        return value

    parse_text.__doc__ = wanted
    return parse_text


def choice(*words: str) -> Parser:
    def parse_choice(value: Any) -> str:
        word = str(value).strip().lower()
        if word not in words:
            raise ValueError(f"one of {', '.join(words)} is wanted")
        return word

    parse_choice.__doc__ = " or ".join(words)
    return parse_choice


def listing(pattern: str, wanted: str) -> Parser:
    """A list in Python or JSON, or words between commas."""

    def parse_listing(value: Any) -> tuple[str, ...]:
        if isinstance(value, str):
            stripped = value.strip()
            items = json.loads(stripped) if stripped.startswith("[") else [v.strip() for v in value.split(",")]
        else:
            items = value
        if not isinstance(items, Sequence) or not all(isinstance(v, str) for v in items):
            raise ValueError(f"a list of {wanted} is wanted")
        kept = tuple(v for v in items if v)
        for item in kept:
            if not re.fullmatch(pattern, item, re.DOTALL):
                raise ValueError(f"{item!r} is not one of {wanted}")
        return kept

    parse_listing.__doc__ = f"list of {wanted}"
    return parse_listing
