"""With orjson in the environment bodies are read, and answers written, just as without it."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import math
import uuid
from collections import namedtuple
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

pytest.importorskip("orjson")

from harness import encoding, parsing
from harness.encoding import encode
from harness.errors import InvalidInput, ModelFailed
from harness.fastjson import FAST
from harness.parsing import parse_json

assert FAST is not None


def both(monkeypatch: pytest.MonkeyPatch, function: Any, *arguments: Any, **options: Any) -> tuple[Any, Any]:
    """Return what a function gives with orjson and without; of an exception its text."""
    found = []
    for fast in (FAST, None):
        monkeypatch.setattr(parsing, "FAST", fast)
        monkeypatch.setattr(encoding, "FAST", fast)
        try:
            found.append(function(*arguments, **options))
        except (InvalidInput, ModelFailed) as refusal:
            found.append(("refused", refusal.message))
    return found[0], found[1]


def same(one: Any, other: Any) -> bool:
    """Whether two documents are equal, in their types, the order of their keys and the signs of their zeros."""
    return repr(one) == repr(other)


digits = st.text("0123456789", min_size=1, max_size=40)
numbers = st.one_of(
    st.integers().map(str),
    st.integers(-(2**66), 2**66).map(str),
    st.sampled_from([2**63, -(2**63), 2**64, 10**18, 10**19, -(10**18), -(10**19)]).flatmap(
        lambda n: st.integers(n - 2, n + 2).map(str)
    ),
    st.floats().map(repr),
    st.floats(allow_nan=False, allow_infinity=False).map(lambda x: f"{x:.25e}"),
    st.tuples(digits, digits, st.sampled_from(["", "e", "E+", "e-"]), st.integers(0, 400)).map(
        lambda parts: f"{parts[0]}.{parts[1]}" + (f"{parts[2]}{parts[3]}" if parts[2] else "")
    ),
)
texts = st.one_of(
    st.text(max_size=8),
    st.text('\\"/bfnrtu0189afAFdD', max_size=8).map(lambda t: t),
    st.text("\x00\x1f\x7f\ud800\udfff😀", max_size=3),
)
scalars = st.one_of(
    numbers,
    texts.map(json.dumps),
    texts.map(lambda t: f'"{t}"'),
    st.sampled_from(["null", "true", "false", "NaN", "-Infinity", "nul", "-", "01"]),
)
gaps = st.text(" \t\n\r", max_size=2)


def nested(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pairs = st.tuples(st.sampled_from(['"a"', '"b"', '"\\u0061"', '"ü"', "1"]), gaps, inner).map(
        lambda p: f"{p[0]}{p[1]}:{p[2]}"
    )
    return st.one_of(
        st.tuples(gaps, st.lists(inner, max_size=4)).map(lambda p: f"[{p[0]}{','.join(p[1])}]"),
        st.tuples(gaps, st.lists(pairs, max_size=4)).map(lambda p: f"{{{','.join(p[1])}{p[0]}}}"),
    )


bodies = st.one_of(
    st.recursive(scalars, nested, max_leaves=12).map(lambda t: t.encode("utf-8", "surrogatepass")),
    st.recursive(scalars, nested, max_leaves=4).map(lambda t: t.encode("utf-16", "surrogatepass")),
    st.recursive(scalars, nested, max_leaves=4).map(lambda t: b"\xef\xbb\xbf" + t.encode("utf-8", "surrogatepass")),
    st.binary(max_size=12),
)


@given(body=bodies, strict=st.booleans())
@example(body=b"[-9223372036854775809, 18446744073709551616]", strict=True)
@example(body=b"[0.00012345678901234567, -0, -0.0, 1e400, 1e-400]", strict=True)
@example(body=b'{"a": 1, "b": 2, "a": 3}', strict=True)
def test_bodies_are_read_the_same(body: bytes, strict: bool) -> None:
    with pytest.MonkeyPatch.context() as patched:
        fast, slow = both(patched, parse_json, body, strict=strict)
    assert same(fast, slow)


Pair = namedtuple("Pair", "a b")


class Colour(str, enum.Enum):
    RED = "red"


class Count(enum.IntEnum):
    TWO = 2


class Text(str):
    pass


@dataclasses.dataclass
class Point:
    x: int
    _hidden: Any


plain = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(max_size=4), st.dates(), st.datetimes(),
        st.datetimes(timezones=st.just(datetime.timezone(datetime.timedelta(minutes=90)))), st.times(), st.timedeltas(),
        st.decimals(), st.uuids(), st.sampled_from([Colour.RED, Count.TWO, Text("x"), Pair(1, b"a"), Point(1, math.nan),
        np.float64(0.1), np.int64(3), np.array([1.5, math.nan]), {1, 2}, range(3), 2**80, -0.0]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.tuples(inner, inner),
        st.dictionaries(st.one_of(st.text(max_size=3), st.integers(), st.booleans(), st.none(), st.just(Colour.RED), st.dates()), inner, max_size=4),
    ),
    max_leaves=10,
)  # fmt: skip


@given(document=plain)
@example(document=[decimal.Decimal("NaN"), uuid.UUID(int=1), "\ud800", object()])
def test_answers_say_the_same(document: Any) -> None:
    def written() -> Any:
        return json.loads(encode(document))

    with pytest.MonkeyPatch.context() as patched:
        fast, slow = both(patched, written)
    assert same(fast, slow)
