"""The replica's log: every line with its time, and none with the value of a variable."""

from __future__ import annotations

import io
import json
import sys
import threading
import time
import traceback
from typing import Any, Iterable, Mapping, TextIO

__all__ = ["Redaction", "StampedStream", "install", "log"]

#: Shorter values would take ordinary words out of the log.
_SHORTEST = 6
#: A line that never ends (a progress bar) is written at this length.
_LONGEST = 64 * 1024


class Redaction:
    """Replaces the values of variables by their names.

    Parameters
    ----------
    secrets : mapping of str to str
        Variable and value; values of fewer than six characters are left alone.
    """

    def __init__(self, secrets: Mapping[str, str]) -> None:
        forms = {}
        for name, value in secrets.items():
            for form in self._forms(value):
                if len(form) >= _SHORTEST:
                    forms.setdefault(form, f"<{name}>")
        # The longest first: a value may hold another one.
        self._forms_by_length = sorted(forms.items(), key=lambda item: -len(item[0]))

    @staticmethod
    def _forms(value: str) -> Iterable[str]:
        """Yield a value as it may be printed: whole, by its lines, and as `repr` and JSON would quote it."""
        for text in {value, *value.splitlines()}:
            yield text.strip()
            yield repr(text)[1:-1]
            yield json.dumps(text)[1:-1]
            yield json.dumps(text, ensure_ascii=False)[1:-1]

    def __call__(self, text: str) -> str:
        for form, name in self._forms_by_length:
            if form in text:
                text = text.replace(form, name)
        return text


class StampedStream(io.TextIOBase):
    """A text stream that writes whole lines only, each with its time in front, without variables' values.

    Parameters
    ----------
    stream : text stream
        Where the lines go.
    redaction : Redaction
        Applied to each line.
    """

    def __init__(self, stream: TextIO, redaction: Redaction) -> None:
        super().__init__()
        self._stream = stream
        self._redaction = redaction
        self._pending: list[str] = []
        self._length = 0
        # Reentrant: a signal handler or a finalizer may print while this thread prints.
        self._lock = threading.RLock()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        return "backslashreplace"

    @property
    def buffer(self) -> Any:
        return self._stream.buffer

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return False

    def write(self, text: str) -> int:
        with self._lock:
            self._pending.append(text)
            self._length += len(text)
            if "\n" in text or self._length > _LONGEST:
                self._emit(whole=self._length > _LONGEST)
        return len(text)

    def flush(self) -> None:
        """Do nothing: a line is written when it is whole, or a value printed in two pieces would slip through."""

    def finish(self) -> None:
        """Write what has no newline yet."""
        with self._lock:
            if self._length:
                self._emit(whole=True)

    def _emit(self, *, whole: bool) -> None:
        lines = "".join(self._pending).split("\n")
        rest = "" if whole else lines.pop()
        self._pending, self._length = [rest], len(rest)
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z "
        text = "".join(stamp + self._redaction(line.rstrip("\r")) + "\n" for line in lines if line or not whole)
        # One write for all lines: the descriptor appends, so lines of several processes do not mix.
        self._stream.write(text)
        self._stream.flush()


def install(redaction: Redaction) -> None:
    """Stamp and redact everything that Python writes to its standard streams from now on."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, f"__{name}__") or open({"stdout": 1, "stderr": 2}[name], "w", closefd=False)  # noqa: SIM115
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")
        setattr(sys, name, StampedStream(stream, redaction))


def log(message: str, *, request_id: str = "", error: BaseException | None = None) -> None:
    """Write a line of ours, and the traceback of an error below it."""
    text = "[harness] " + (f"[{request_id}] " if request_id else "") + message + "\n"
    if error is not None:
        text += "".join(traceback.format_exception(type(error), error, error.__traceback__))
    sys.stderr.write(text)
