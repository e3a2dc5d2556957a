"""Finds the Python that a version runs on: the model's own major and minor version, the same patch level if possible.

Looked for in this process, on PATH, among uv's and pyenv's interpreters; then uv may download one. A candidate counts
only after it has run: a broken link, a shim without an interpreter behind it or a missing library is passed over.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow_domino.errors import EnvironmentFailed

__all__ = ["Interpreter", "Search", "find", "first_there", "installed"]

#: The harness runs on this and later ones.
_FLOOR = (3, 8)
_PROBE_TIMEOUT_S = 10
_PROBE = """
import os, sys, zlib
print(os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable))
print("%d.%d.%d" % sys.version_info[:3])
print("-".join((sys.implementation.name, "%d.%d.%d" % sys.version_info[:3], sys.platform, os.uname().machine)))
"""


@dataclass(frozen=True)
class Interpreter:
    """A Python that has run on this machine.

    Attributes
    ----------
    path : Path
        The real program, outside of any virtual environment.
    version : str
        Full version, such as ``3.11.7``.
    tag : str
        Implementation, version and platform: environments are only shared where it is the same.
    """

    path: Path
    version: str
    tag: str


@dataclass(frozen=True)
class Search:
    """Where to look; the default is this machine as this process sees it.

    Attributes
    ----------
    environment : mapping of str to str
    own : Path or None
        This process's interpreter; None leaves it out.
    """

    environment: dict[str, str]
    own: Path | None

    @classmethod
    def here(cls) -> Search:
        own = getattr(sys, "_base_executable", None) or sys.executable
        return cls(dict(os.environ), Path(own) if own else None)

    def candidates(self, minor: str) -> Iterator[Path]:
        """Yield programs that may be a Python of a version such as ``3.11``, the cheapest to trust first."""
        if self.own and f"{sys.version_info[0]}.{sys.version_info[1]}" == minor:
            yield self.own
        folders = [Path(folder) for folder in self.environment.get("PATH", "").split(os.pathsep) if folder]
        shims = [folder for folder in folders if folder.name == "shims"]
        for folder in folders:
            if folder not in shims:
                yield from (folder / f"python{minor}", folder / "python3", folder / "python")
        for _, program in self._installed(minor):
            yield program
        # A shim answers for whatever version its manager has switched on, slowly.
        yield from (folder / f"python{minor}" for folder in shims)

    def exact(self, version: str) -> Iterator[Path]:
        """Yield programs whose folder says that they are this full version."""
        minor = ".".join(version.split(".")[:2])
        yield from (program for named, program in self._installed(minor) if named == version)

    def _installed(self, minor: str) -> list[tuple[str, Path]]:
        """Return (version, program) of uv's and pyenv's interpreters, the newest first."""
        home = Path(self.environment.get("HOME") or Path.home())
        data = Path(self.environment.get("XDG_DATA_HOME") or home / ".local" / "share")
        uv = Path(self.environment.get("UV_PYTHON_INSTALL_DIR") or data / "uv" / "python")
        pyenv = Path(self.environment.get("PYENV_ROOT") or home / ".pyenv") / "versions"
        found = []
        for folder, pattern in ((uv, r"cpython-(\d+\.\d+\.\d+)-.*"), (pyenv, r"(\d+\.\d+\.\d+)")):
            for entry in folder.iterdir() if folder.is_dir() else ():
                match = re.fullmatch(pattern, entry.name)
                if match and match[1].startswith(minor + "."):
                    found.append((match[1], entry / "bin" / f"python{minor}"))
        return sorted(found, key=lambda item: [int(part) for part in item[0].split(".")], reverse=True)


def find(
    wanted: str, *, search: Search | None = None, download: Callable[[str], str] | None = None
) -> tuple[Interpreter, tuple[str, ...]]:
    """Find the Python of a version.

    Parameters
    ----------
    wanted : str
        Such as ``3.11.7`` or ``3.11``.
    search : Search, optional
        Where to look; this machine by default.
    download : callable, optional
        Gets ``3.11`` installed in a folder of uv's, and returns why it could not (empty when it could).
        None: not allowed.

    Returns
    -------
    Interpreter
    tuple of str
        What a person should know, such as that another patch level is used.

    Raises
    ------
    EnvironmentFailed
        Naming the interpreters that are there, and the ways out.
    """
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", wanted)
    if not match:
        raise EnvironmentFailed(f"The model's Python version {wanted!r} is none; name one with python_version=3.11.")
    minor = f"{match[1]}.{match[2]}"
    if (int(match[1]), int(match[2])) < _FLOOR:
        floor = ".".join(map(str, _FLOOR))
        raise EnvironmentFailed(
            f"Python {minor} is older than {floor}, the first that models are served on. "
            f"Save the model again on a newer Python, or try one with python_version={floor}."
        )
    search = search or Search.here()
    found = _first(search, wanted, minor)
    trouble = ""
    if found is None and download is not None:
        trouble = download(minor)
        found = None if trouble else _first(search, wanted, minor)
    if found is None:
        raise EnvironmentFailed(_not_found(search, wanted, allowed=download is not None), log_tail=trouble)
    exact = match[3] is None or found.version == match[0]
    return found, () if exact else (f"Python {match[0]} is wanted, {found.version} is used",)


def _first(search: Search, wanted: str, minor: str) -> Interpreter | None:
    """Return the exact version if there is one, else the first of the same major and minor version."""
    tried: set[Path] = set()
    other = None
    for program in (*search.exact(wanted), *search.candidates(minor)):
        if program in tried or not os.access(program, os.X_OK):
            continue
        tried.add(program)
        interpreter = _run(program)
        if interpreter is None or not interpreter.version.startswith(minor + "."):
            continue
        if wanted in (minor, interpreter.version):
            return interpreter
        other = other or interpreter
    return other


def _run(program: Path) -> Interpreter | None:
    try:
        ended = subprocess.run(
            [program, "-I", "-S", "-c", _PROBE],
            capture_output=True, stdin=subprocess.DEVNULL, timeout=_PROBE_TIMEOUT_S, check=True, cwd="/", text=True,
        )  # fmt: skip
        path, version, tag = ended.stdout.splitlines()
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return Interpreter(Path(path), version, tag) if tag.startswith("cpython-") else None


def installed(search: Search | None = None) -> list[str]:
    """Return the versions of the Pythons that are on this machine and can be used, one of each minor version."""
    search = search or Search.here()
    found = (_first(search, f"3.{number}", f"3.{number}") for number in range(_FLOOR[1], 31))
    return [interpreter.version for interpreter in found if interpreter]


def first_there(minors: Sequence[str], search: Search | None = None) -> str:
    """Return the first of some versions such as ``3.12`` that is on this machine; empty where none is."""
    search = search or Search.here()
    return next((minor for minor in minors if _first(search, minor, minor)), "")


def _not_found(search: Search, wanted: str, *, allowed: bool) -> str:
    there = installed(search)
    minor = ".".join(wanted.split(".")[:2])
    downloaded = "could not be downloaded" if allowed else "may not be downloaded (python_downloads=false)"
    text = f"Python {wanted} is not on this machine and {downloaded}. "
    text += f"There are {', '.join(there)}. " if there else "There is no other either. "
    text += f"Install Python {minor} (`uv python install {minor}`, pyenv, or the system's packages)"
    if there:
        text += f", or use another with python_version={'.'.join(there[-1].split('.')[:2])}"
    return text + "."
