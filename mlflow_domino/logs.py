"""Logs of builds and replicas: reading, following, and taking secrets out of them.

A line that Python wrote begins with its time in UTC, ``2026-11-23T01:02:03.456Z ``; a line without one (uWSGI's, a
traceback's, a model's `print`) belongs to the one before. What a log held that grew too large stands in NAME.1.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import shutil
import time
import urllib.parse
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mlflow_domino.errors import InvalidInput

__all__ = ["Line", "explaining", "follow", "parse_duration", "read", "redact", "shorten", "tail", "written"]

_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3})Z ")
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_REDACTED = "[redacted]"
#: Shorter values are words and numbers, which would make holes all over a log.
_SHORTEST_SECRET = 6


@dataclass(frozen=True)
class Line:
    """A line of a log.

    Attributes
    ----------
    path : Path
        The log, never its rotated part.
    text : str
        Without the line end.
    time_ms : int
        When it was written, or the line before it that says so.
    """

    path: Path
    text: str
    time_ms: int


def parse_duration(text: str) -> float:
    """Return the seconds that ``90s``, ``10m``, ``2h``, ``1h30m`` or ``1d`` mean.

    Raises
    ------
    InvalidInput
        When it is none.
    """
    parts = re.findall(r"(\d{1,9}(?:\.\d{1,3})?)(ms|[smhdw])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text.strip():
        raise InvalidInput(f"{text[:40]!r} is no length of time: write it with its unit, such as 90s, 10m, 2h or 1d.")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def redact(text: str, values: Iterable[str]) -> str:
    """Return text with secret values of six characters and more taken out, however Python or JSON wrote them."""
    return _without(text, _forms(values))


def _without(text: str, forms: Sequence[str]) -> str:
    for form in forms:
        text = text.replace(form, _REDACTED)
    return text


def _forms(values: Iterable[str]) -> list[str]:
    """Return what to look for, the longest first: a value may hold another one."""
    forms: set[str] = set()
    for value in values:
        lines = (line.strip() for line in value.splitlines())  # a key of several lines is logged as several lines
        for secret in (value, value.strip(), *lines):
            forms |= {
                secret,
                repr(secret)[1:-1],
                json.dumps(secret)[1:-1],
                json.dumps(secret, ensure_ascii=False)[1:-1],
            }
            with contextlib.suppress(UnicodeEncodeError):
                forms.add(urllib.parse.quote(secret, safe=""))
    return sorted((form for form in forms if len(form) >= _SHORTEST_SECRET), key=len, reverse=True)


@contextlib.contextmanager
def written(path: Path, log: Callable[[str], None], values: Iterable[str] = ()) -> Iterator[Callable[[str], None]]:
    """Yield a function that takes lines, for a log of mode 0600 and for `log`, without secrets in either.

    Parameters
    ----------
    path : Path
        The log; lines are added to what it holds.
    log : callable
        Gets each line too, without its time.
    values : iterable of str
        Secrets to take out.
    """
    forms = _forms(values)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace", buffering=1) as file:

        def both(text: str) -> None:
            clean = _without(text, forms)
            now = datetime.datetime.now(datetime.timezone.utc)
            stamp = f"{now:%Y-%m-%dT%H:%M:%S}.{now.microsecond // 1000:03d}Z"
            file.write("".join(f"{stamp} {line}\n" for line in _split(clean) or [""]))
            log(clean)

        yield both


def tail(path: Path, lines: int = 20, *, values: Iterable[str] = (), limit: int = 64 << 10) -> str:
    """Return the last lines of a log, of its rotated part too where it is short; empty where there is no log.

    Parameters
    ----------
    path : Path
        The log.
    lines : int
        At most so many.
    values : iterable of str
        Secrets to take out.
    limit : int
        At most so many bytes are read of each file.
    """
    text = _end(path, limit)
    if text.count("\n") < lines:
        older = _end(_rotated(path), limit)
        text = f"{older}\n{text}" if older and not older.endswith("\n") else older + text
    return redact("\n".join(_split(text)[-lines:] if lines > 0 else []), values)


def explaining(text: str, lines: int) -> str:
    """Return the last lines of a replica's log that say why it failed.

    What uWSGI says of itself at each start would push the reason out of sight: the last traceback goes first.
    """
    start = text.rfind("Traceback (most recent call last)")
    found = text[max(0, text.rfind("\n", 0, max(start, 0))) :].splitlines() if start >= 0 else text.splitlines()
    return "\n".join(line for line in found[-lines:] if line)


def _end(path: Path, limit: int) -> str:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limit))
            text = file.read(limit).decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    return text.partition("\n")[2] if size > limit and "\n" in text else text


def _split(text: str) -> list[str]:
    """Split at line ends only; a log may hold the other characters that splitlines() takes for them."""
    lines = text.split("\n")
    if lines and not lines[-1]:
        lines.pop()
    return [line.rstrip("\r") for line in lines]


def _rotated(path: Path) -> Path:
    return path.with_name(path.name + ".1")


def shorten(path: Path, limit: int) -> bool:
    """Move what a log holds to its rotated part where it is longer than that; false where it is not.

    Its writers append, so they go on at its start; what they write in that very moment is lost.
    """
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        if os.fstat(file.fileno()).st_size > limit:
            beside = path.with_name(f".{path.name}.1")
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
            with open(os.open(beside, flags, 0o600), "wb") as older:
                shutil.copyfileobj(file, older)
            os.replace(beside, _rotated(path))
            os.truncate(path, 0)
            return True
    return False


def read(path: Path, *, since_ms: int | None = None, values: Iterable[str] = ()) -> Iterator[Line]:
    """Yield the lines of a log, older ones of its rotated part first.

    Parameters
    ----------
    path : Path
        The log; one that does not exist has no lines.
    since_ms : int or None
        Only lines from then on.
    values : iterable of str
        Secrets to take out.
    """
    forms = _forms(values)
    for part in (_rotated(path), path):
        with contextlib.suppress(FileNotFoundError), part.open("rb") as file:
            yield from _lines(path, file, since_ms, forms)


def _lines(path: Path, file: BinaryIO, since_ms: int | None, forms: Sequence[str]) -> Iterator[Line]:
    unknown: list[str] = []  # what stands before the first time: as old as that
    last: int | None = None
    for raw in file:
        text = raw.decode("utf-8", "replace").rstrip("\r\n")
        stamp = _stamp_ms(text)
        if stamp is None and last is None:
            unknown.append(text)
            continue
        last = stamp if stamp is not None else last
        assert last is not None
        if since_ms is None or last >= since_ms:
            for line in (*unknown, text):
                yield Line(path, _without(line, forms), last)
        unknown.clear()
    if unknown:
        changed = int(os.fstat(file.fileno()).st_mtime * 1000)
        if since_ms is None or changed >= since_ms:
            for line in unknown:
                yield Line(path, _without(line, forms), changed)


def _stamp_ms(text: str) -> int | None:
    match = _STAMP.match(text)
    if not match:
        return None
    try:
        moment = datetime.datetime.fromisoformat(match[1]).replace(tzinfo=datetime.timezone.utc)
    except ValueError:  # such as a month 13
        return None
    return round(moment.timestamp() * 1000)


def follow(
    paths: Callable[[], Iterable[Path]],
    *,
    since_ms: int | None = None,
    last: int | None = None,
    values: Collection[str] = (),
    wait: Callable[[], bool],
) -> Iterator[Line]:
    """Yield lines as they are written, also to logs that begin, are rotated or are emptied meanwhile.

    Parameters
    ----------
    paths : callable
        Which logs to follow; asked again each time, since replicas come and go.
    since_ms : int or None
        First yield what was written from then on; None for nothing that is there already.
    last : int or None
        Of what is there already, only so many of the last lines.
    values : collection of str
        Secrets to take out; it may get more of them each time that `paths` is asked.
    wait : callable
        Called when there is nothing new; sleeps a little, and returns false to end.
    """
    known: frozenset[str] = frozenset()
    forms: Sequence[str] = ()
    watched: dict[Path, _Watched] = {}
    with contextlib.ExitStack() as stack:
        at_end = since_ms is None
        while True:
            news: list[Line] = []
            for path in paths():
                if path not in watched:
                    watched[path] = stack.enter_context(contextlib.closing(_Watched(path, at_end=at_end)))
                    news += [] if at_end else watched[path].older()
            at_end = False
            if not known.issuperset(values):
                known = frozenset(values)
                forms = _forms(known)
            news += [line for log in watched.values() for line in log.news()]
            wanted = [line for line in news if since_ms is None or line.time_ms >= since_ms]
            wanted.sort(key=lambda line: line.time_ms)
            for line in wanted if last is None else wanted[max(0, len(wanted) - last) :]:
                yield Line(line.path, _without(line.text, forms), line.time_ms)
            last = None
            if not news and not wait():
                return


def _now_ms() -> int:
    return int(time.time() * 1000)


class _Watched:
    """A log of which whole lines are read as they come."""

    def __init__(self, path: Path, *, at_end: bool) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._rest = b""
        self._time_ms = _now_ms() if at_end else 0
        self._open(at_end=at_end)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def older(self) -> list[Line]:
        """Return the lines of the rotated part, unless that is the file which is open."""
        with contextlib.suppress(FileNotFoundError), _rotated(self._path).open("rb") as file:
            if self._file is None or not os.path.sameopenfile(file.fileno(), self._file.fileno()):
                return list(_lines(self._path, file, None, ()))
        return []

    def news(self) -> list[Line]:
        if self._file is None:
            self._open(at_end=False)
        found = self._read()
        if self._file is not None and self._was_replaced():
            found += self._read()  # what was written between the last look and the renaming
            self._open(at_end=False)
            found += self._read()
        self._time_ms = self._time_ms or _now_ms()  # lines from now on are new, even if none says when
        return found

    def _open(self, *, at_end: bool) -> None:
        self.close()
        self._rest = b""
        try:
            self._file = self._path.open("rb")
        except FileNotFoundError:
            self._file = None
            return
        if at_end:
            self._file.seek(0, os.SEEK_END)

    def _was_replaced(self) -> bool:
        assert self._file is not None
        try:
            there = self._path.stat()
        except FileNotFoundError:
            return False
        ours = os.fstat(self._file.fileno())
        return (there.st_ino, there.st_dev) != (ours.st_ino, ours.st_dev) or there.st_size < self._file.tell()

    def _read(self) -> list[Line]:
        if self._file is None:
            return []
        *whole, self._rest = (self._rest + self._file.read()).split(b"\n")
        lines = []
        for raw in whole:
            text = raw.decode("utf-8", "replace").rstrip("\r")
            self._time_ms = _stamp_ms(text) or self._time_ms
            lines.append(Line(self._path, text, self._time_ms))
        return lines
