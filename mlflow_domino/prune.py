"""What can be removed: old versions, environments that nothing uses, logs of the past."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from mlflow_domino import tree
from mlflow_domino.builder import builder_of
from mlflow_domino.controller import Controller
from mlflow_domino.data_planes.assembly import images_of
from mlflow_domino.disk import size_of
from mlflow_domino.environment import Environments
from mlflow_domino.errors import Conflict, DominoError
from mlflow_domino.memory import Memory
from mlflow_domino.models import Endpoint, Target, Version
from mlflow_domino.store import Records, SqliteRecords

__all__ = ["Item", "carry_out", "plan", "readable"]


@dataclass(frozen=True)
class Item:
    """Something that can be removed.

    Attributes
    ----------
    kind : str
        ``version``, ``environment``, ``image``, ``harness``, ``log`` or ``folder`` (of a version that no record knows).
    name : str
        For a person.
    size : int
        Bytes, as files say; of an environment uv's cache shares most.
    why : str
        Why nobody needs it.
    path : Path
        What is removed.
    version : Version or None
        The version that it is, or whose log.
    """

    kind: str
    name: str
    size: int
    why: str
    path: Path
    version: Version | None = None


def plan(controller: Controller, *, keep: int | None = None, older_than_s: float = 86400) -> list[Item]:
    """Return what can be removed; nothing that runs, that a route leads to, or that a verb is at work on.

    Parameters
    ----------
    controller : Controller
        Of the data plane.
    keep : int or None
        Versions that each endpoint keeps; None for its own ``keep_versions``.
    older_than_s : float
        Of environments, logs and leftovers, only those that were not used for so long.
    """
    before_s = time.time() - older_than_s
    endpoints = {e.id: e for e in controller.records.endpoints()}
    versions = controller.records.versions()
    surplus = {v.id: v for e in endpoints.values() if _here(controller, e) for v in _surplus(controller, e, keep)}
    kept = [v for v in versions if v.id not in surplus]
    items = [_version_item(controller, endpoints[v.endpoint_id], v) for v in surplus.values()]
    places = _places(controller)
    if not any(records.operations() for records in places):  # what is being built has no record yet
        others = [*_remembered(controller), *(v for records in places[1:] for v in records.versions())]
        items += _environments(controller, [*kept, *others], before_s)
        items += _harnesses(controller, [*kept, *others], before_s)
        items += [
            Item("image", name, size, "no version's image is built on it", Path(name))
            for name, size in controller.plane.leftovers(before_s)
        ]
        items += _leftovers(controller, {v.id for v in (*versions, *others)}, before_s)
    for version in kept:
        items += _logs(controller, endpoints[version.endpoint_id], version, before_s)
    return items


def carry_out(controller: Controller, items: Sequence[Item], say: Callable[[str], None]) -> None:
    """Remove what a plan names, but for what somebody has begun to use since."""
    for item in items:
        try:
            if item.kind == "version":
                _remove_version(controller, item)
            elif item.kind == "environment":
                Environments(controller.home).remove(item.path.name)
            elif item.kind == "image":
                controller.plane.remove_leftover(item.name)
            elif item.kind == "folder":
                _forget_images(item.path)
                tree.remove(item.path)
            else:
                tree.remove(item.path)
        except (DominoError, OSError) as error:
            say(f"{item.kind} {item.name} stays: {error}")


def _forget_images(folder: Path) -> None:
    """Remove the images that were made of a version which no record knows."""
    names = images_of(folder)
    if names:
        builder = builder_of()
        for name in names:
            builder.remove_image(name)


def readable(size: int) -> str:
    """Return a number of bytes as a person reads it."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            break
        amount /= 1024
    return f"{amount:.0f} {unit}" if amount >= 10 or unit == "B" else f"{amount:.1f} {unit}"


def _places(controller: Controller) -> list[Records]:
    """Return the data plane's records, and the home's where those are others: all data planes share its folders."""
    own = controller.plane.own_records() is not None and controller.home.database.is_file()
    return [controller.records, *([SqliteRecords(controller.home)] if own else [])]


def _remembered(controller: Controller) -> Iterator[Version]:
    """Yield the versions of data planes that keep their own records, as they were last seen from here."""
    for path in sorted((controller.home.root / "seen").glob("*.json")):
        for seen in Memory(controller.home, path.stem).recall():
            yield from seen.versions


def _here(controller: Controller, endpoint: Endpoint) -> bool:
    return endpoint.data_plane == controller.plane.name


def _needed(endpoint: Endpoint, version: Version) -> bool:
    routed = {endpoint.latest, endpoint.promoted}
    return version.id in routed or version.target is Target.RUNNING


def _surplus(controller: Controller, endpoint: Endpoint, keep: int | None) -> list[Version]:
    if keep is None:
        return controller.surplus_versions(endpoint.id)
    versions = controller.records.versions(endpoint.id)
    free = [v for v in versions if not _needed(endpoint, v)]
    return free[: max(0, len(versions) - keep)]


def _version_item(controller: Controller, endpoint: Endpoint, version: Version) -> Item:
    path = controller.home.version(version.id)
    why = f"{version.status.value}, beyond the versions that are kept"
    return Item("version", f"{endpoint.name} {version.number}", size_of(path), why, path, version)


def _remove_version(controller: Controller, item: Item) -> None:
    assert item.version is not None
    version = item.version
    with controller.records.lock(version.endpoint_id, wait=False, conflict="its endpoint is being changed."):
        endpoint = next((e for e in controller.records.endpoints() if e.id == version.endpoint_id), None)
        fresh = next((v for v in controller.records.versions(version.endpoint_id) if v.id == version.id), None)
        if endpoint is None or fresh is None:
            return
        if _needed(endpoint, fresh):
            raise Conflict("it is in use now.")
        controller.plane.discard(fresh)
        controller.records.remove_version(fresh.id)


def _environments(controller: Controller, kept: Sequence[Version], before_s: float) -> Iterator[Item]:
    used = {name for v in kept if v.artifact for name in (v.artifact.environment, v.artifact.seldon)}
    root = controller.home.environments.resolve()
    for stored in Environments(controller.home).stored():
        path = root / stored.environment
        if stored.environment not in used and stored.last_used_ms / 1000 < before_s and not _is_running(path):
            why = f"no version uses it (Python {stored.python_version})" if stored.complete else "was never finished"
            yield Item("environment", stored.environment, stored.size, why, path)


def _is_running(environment: Path) -> bool:
    """Whether a process runs in an environment; another home may share it."""
    begin = f"{environment}{os.sep}"
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(word.startswith(begin) for word in process.cmdline()):
                return True
    return False


def _harnesses(controller: Controller, kept: Sequence[Version], before_s: float) -> Iterator[Item]:
    used = {v.artifact.harness for v in kept if v.artifact}
    for path in _folders(controller.home.harnesses):
        if path.name not in used and path.stat().st_mtime < before_s:
            yield Item("harness", path.name, size_of(path), "no version uses it", path)


def _leftovers(controller: Controller, known: set[str], before_s: float) -> Iterator[Item]:
    for path in _folders(controller.home.root / "versions"):
        if path.name not in known and path.stat().st_mtime < before_s:
            yield Item("folder", path.name, size_of(path), "belongs to no version", path)


def _logs(controller: Controller, endpoint: Endpoint, version: Version, before_s: float) -> Iterator[Item]:
    """Rotated parts; and all logs of a version that does not run, whose reason is in its record."""
    for log in controller.plane.logs(version):
        rotated = log.with_name(log.name + ".1")
        for path in (rotated,) if version.target is Target.RUNNING else (rotated, log):
            if path.is_file() and path.stat().st_mtime < before_s:
                name = f"{endpoint.name} {version.number} {path.name}"
                yield Item("log", name, path.stat().st_size, "old", path, version)


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
