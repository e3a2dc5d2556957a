"""Folders that builds work in: they end with the build, and what a killed one left is removed by a later one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["workspace"]

_PREFIX = "mlflow-domino-build-"
_STALE_S = 86400


@contextlib.contextmanager
def workspace() -> Iterator[Path]:
    """Make a folder among the temporary files, and remove it in the end.

    Not inside the home, which may stand in a project whose configuration uv would find.
    """
    _sweep()
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as folder, _held(Path(folder)) as held:
        assert held
        yield Path(folder)


def _sweep() -> None:
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            status = path.lstat()
            if status.st_uid == os.getuid() and status.st_mtime < time.time() - _STALE_S:
                with _held(path) as held:
                    if held:
                        shutil.rmtree(path)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Hold a workspace, so that nobody sweeps it whose clock was set forward; false while another does."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)
