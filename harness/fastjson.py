"""orjson, where the model's environment has it: for all that it reads and writes just as the standard library does.

It reads whole numbers beyond 64 bits as floats, and refuses much that Python takes: lone surrogates, other encodings
than UTF-8, numbers that become infinite. What may be one of these is the standard library's.
"""

from __future__ import annotations

from typing import Any, Callable, NamedTuple, Optional

__all__ = ["FAST", "Fast"]

#: From here on its floats are the nearest ones, as Python's are.
_SINCE = (3, 9)
#: Digits but 0 become 0; points, signs and 0 stay; all else becomes a space.
_SHAPES = bytes(byte if byte in b"-.0" else 48 if 49 <= byte <= 57 else 32 for byte in range(256))
#: Whole numbers of so many digits may not fit into 64 bits; so do the digits of some fractions.
_LONG, _LONG_NEGATIVE = b"0" * 20, b"-" + b"0" * 19


class Fast(NamedTuple):
    """What orjson does in the place of the standard library.

    Attributes
    ----------
    loads : callable
        Raises ValueError for what the standard library is to read.
    dumps : callable
        Raises TypeError for what the standard library is to write.
    """

    loads: Callable[[bytes], Any]
    dumps: Callable[[Any], bytes]


def _fast() -> Optional[Fast]:
    try:
        import orjson

        if tuple(int(part) for part in orjson.__version__.split(".")[:2]) < _SINCE:
            return None
    except Exception:  # not there, or broken: the model may do without it
        return None
    # Types of Python's that it would write in a way of its own are refused instead.
    options = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS
    read, write = orjson.loads, orjson.dumps

    def loads(body: bytes) -> Any:
        shapes = body.translate(_SHAPES)
        if _LONG in shapes or _LONG_NEGATIVE in shapes:
            raise ValueError("a number may be too long")
        return read(body)

    def dumps(document: Any) -> bytes:
        return write(document, None, options)

    return Fast(loads, dumps)


FAST = _fast()
