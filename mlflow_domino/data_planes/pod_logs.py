"""Logs of pods as files: a pod's log is gone with the pod, and what reads logs reads files as they grow."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow_domino.cluster import Cluster
from mlflow_domino.errors import DominoError
from mlflow_domino.home import write_text

__all__ = ["PodLogs"]

_CONTAINER = "model"
_LINES = 20000
_BYTES = 16 << 20
#: What the kubelet writes before each line, and before each piece of one that is longer than a piece.
_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}(?:Z|[+-]\d\d:\d\d)) ?")
_PIECE = 16 << 10


@dataclass(frozen=True)
class _Copied:
    """How far the log of a pod was copied: the last line's time, and how often its container had been started again."""

    stamp: str = ""
    restarts: int = 0


class PodLogs:
    """Copies what containers of models wrote into a folder, one file for each pod.

    Parameters
    ----------
    cluster : Cluster
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._copied: dict[Path, _Copied] = {}

    def copy(self, pod: Mapping[str, Any], folder: Path) -> Path:
        """Bring the file with a pod's log up to date, and return it: written anew at first, then added to.

        Of a container that was started again, what it wrote before that is in the file too.
        """
        name: str = pod["metadata"]["name"]
        path = folder / f"{name.rpartition('-')[2]}.log"
        before = self._copied.get(path)
        restarts = _restarts(pod)
        lines = []
        if restarts > (before.restarts if before else 0):
            lines = self._lines(name, before, previous=True)
        lines += self._lines(name, before)
        text = "".join(f"{_without_stamps(line)}\n" for line in lines)
        if before is None:
            write_text(path, text)
        elif text:
            with path.open("a", encoding="utf-8", newline="") as file:
                file.write(text)
        stamp = max((_stamp(line) for line in lines), default=before.stamp if before else "")
        self._copied[path] = _Copied(stamp, restarts)
        return path

    def keep(self, pods: Sequence[Mapping[str, Any]], folder: Path) -> None:
        """Copy the logs of pods that are about to end, as far as they can be had."""
        for pod in pods:
            with contextlib.suppress(DominoError):
                self.copy(pod, folder)

    def _lines(self, pod: str, since: _Copied | None, *, previous: bool = False) -> list[str]:
        stamp = since.stamp if since else ""
        text = self._cluster.pod_log(
            pod, _CONTAINER, tail=_LINES, limit=_BYTES, previous=previous, since=stamp, stamps=True
        )
        return [line for line in text.split("\n") if line and _stamp(line) > stamp]


def _restarts(pod: Mapping[str, Any]) -> int:
    found = pod["status"].get("containerStatuses") or ()
    return next((int(c.get("restartCount", 0)) for c in found if c["name"] == _CONTAINER), 0)


def _stamp(line: str) -> str:
    found = _STAMP.match(line)
    return found[1] if found else ""


def _without_stamps(line: str) -> str:
    """Return what was written, without the kubelet's times; pieces are counted in bytes."""
    rest = line.encode("utf-8", "replace")
    pieces = []
    while found := re.match(_STAMP.pattern.encode(), rest):
        pieces.append(rest[found.end() : found.end() + _PIECE])
        rest = rest[found.end() + _PIECE :]
    return (b"".join(pieces) + rest).decode("utf-8", "replace")
