"""The processes of a home by what they are, so that tests can kill any of them."""

from __future__ import annotations

import contextlib
import random
import time

import psutil

from mlflow_domino.home import Home

__all__ = ["KINDS", "kill", "parts", "pause"]

KINDS = ("dispatcher", "application", "envoy", "emperor", "worker", "microservice", "replica")


def parts(home: Home) -> dict[str, list[psutil.Process]]:
    """Return the processes of each of `KINDS` that are there now."""
    found: dict[str, list[psutil.Process]] = {kind: [] for kind in KINDS}
    with contextlib.suppress(OSError, ValueError, psutil.Error):
        for child in psutil.Process(int((home.run / "supervisor.pid").read_text())).children():
            words = child.cmdline()
            if not words:
                continue  # it has just ended
            if "envoy" in words[0]:
                found["envoy"].append(child)
            else:
                found["emperor"].append(child)
                _vassals(child, found)
    return found


def _vassals(emperor: psutil.Process, found: dict[str, list[psutil.Process]]) -> None:
    for vassal in emperor.children():
        with contextlib.suppress(psutil.Error):
            line = " ".join(vassal.cmdline())
            if "gateway.dispatcher" in line:
                found["dispatcher"].append(vassal)
            elif "gateway.serve" in line:
                found["application"] += [vassal, *vassal.children()]
            elif "launch.py" in line:
                found["replica"].append(vassal)
                for child in vassal.children(recursive=True):
                    found["microservice" if "seldon.py" in " ".join(child.cmdline()) else "worker"].append(child)


def kill(home: Home, kind: str, *, seed: random.Random | None = None) -> bool:
    """Kill one process of a kind, `replica` with all below it; false where there is none just now."""
    candidates = parts(home)[kind]
    if not candidates:
        return False
    victim = (seed or random.Random(0)).choice(candidates)
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [victim, *victim.children(recursive=True)] if kind == "replica" else [victim]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return True
    return False


def pause(home: Home, kind: str, seconds: float) -> None:
    """Hold up the processes of a kind, and let them go on as if nothing had happened."""
    held = parts(home)[kind]
    try:
        for process in held:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()
        time.sleep(seconds)
    finally:
        for process in held:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
