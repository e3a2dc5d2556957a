"""Plain tables: columns under their names, without colours, so that they are the same in a file."""

from __future__ import annotations

import datetime
import unicodedata
from collections.abc import Sequence

__all__ = ["local_time", "pairs", "table"]


def table(names: Sequence[str], rows: Sequence[Sequence[object]], *, width: int | None = None) -> str:
    """Lay out rows under the names of their columns.

    Parameters
    ----------
    names : sequence of str
        Of the columns.
    rows : sequence of sequences
        Each with a value for each column; only the first line of a value is shown.
    width : int or None
        Cut lines there, for a terminal; None leaves them whole.
    """
    cells = [[*names], *([_one_line(value) for value in row] for row in rows)]
    widths = [max(_columns(row[n]) for row in cells) for n in range(len(names))]
    lines = [
        "  ".join(cell + " " * (widths[n] - _columns(cell)) for n, cell in enumerate(row)).rstrip() for row in cells
    ]
    return "\n".join(_cut(line, width) for line in lines)


def pairs(rows: Sequence[tuple[str, object]]) -> str:
    """Lay out names and values, leaving out those without a value; lines of a value stand under each other."""
    kept = [(name, str(value)) for name, value in rows if value not in (None, "", (), [])]
    indent = max((len(name) for name, _ in kept), default=0) + 2
    return "\n".join(
        name.ljust(indent) + ("\n" + " " * indent).join(printable(line) for line in value.split("\n"))
        for name, value in kept
    )


def local_time(ms: int) -> str:
    return (
        datetime.datetime.fromtimestamp(ms / 1000, tz=datetime.timezone.utc).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    )


def printable(text: str) -> str:
    """Return text without what could steer a terminal: a name or a reason may come from anybody."""
    return "".join(c if c.isprintable() or c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def _one_line(value: object) -> str:
    if value is None:
        return "-"
    first, more, _ = str(value).strip().partition("\n")
    return printable(first + (" …" if more else "")) or "-"


def _columns(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _cut(line: str, width: int | None) -> str:
    if width is None or _columns(line) <= width:
        return line
    kept = line
    while _columns(kept) >= width:
        kept = kept[:-1]
    return kept + "…"
