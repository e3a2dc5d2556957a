"""The caller's connection, as far as uWSGI shows it."""

from __future__ import annotations

import time

__all__ = ["Connection", "NoConnection"]

_LONGEST_S = 2.0
_MOST = 64 << 20


class NoConnection:
    """Outside uWSGI: nothing is known, and nothing needs to be."""

    def descriptor(self) -> int | None:
        return None

    def discard_chunks(self) -> None:
        pass


class Connection(NoConnection):
    """uWSGI's current request's."""

    def descriptor(self) -> int | None:
        """Return the descriptor of the connection that this thread serves."""
        import uwsgi

        return uwsgi.connection_fd()

    def discard_chunks(self) -> None:
        """Read a chunked body to its end, so that its sender is still there when the refusal comes."""
        import uwsgi

        deadline, left = time.monotonic() + _LONGEST_S, _MOST
        while left > 0 and time.monotonic() < deadline:
            try:
                chunk = uwsgi.chunked_read(1)
            except OSError:
                return
            if not chunk:
                return
            left -= len(chunk)
