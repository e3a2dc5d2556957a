"""Byte code of the modules that a model imports, made ahead where replicas cannot keep what they compile.

Compiling all that is installed takes several times as long as installing it, and doubles its size; most of it is never
imported. The environment on this machine, in which the model was tried, has byte code of exactly what was.
"""

from __future__ import annotations

import os
from pathlib import Path

from mlflow_domino.resolver import run

__all__ = ["compile_used"]

#: So few files are all compiled, where nothing is known of their use.
_FEW = 1500

# By content's hash, and not checked again: the same files give the same bytes, whatever their times are.
_COMPILE = """
import py_compile, sys
root, place, listed = sys.argv[1:]
for line in open(listed, encoding="utf-8", errors="surrogateescape"):
    name = line.rstrip("\\n")
    py_compile.compile(
        root + "/" + name, dfile=place + "/" + name, quiet=2,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
"""


def compile_used(packages: Path, python: Path, environment: Path, *, place: str, folder: Path) -> None:
    """Compile modules in `packages` that something in `environment` has imported.

    Parameters
    ----------
    packages : Path
        As ``pip install --target`` leaves it.
    python : Path
        An interpreter of the same minor version as the one that will import them.
    environment : Path
        Virtual environment with the same packages.
    place : str
        Folder from which the modules will be imported, for tracebacks.
    folder : Path
        For a file of ours.
    """
    names = [name for name in _imported(environment) if (packages / name).is_file()]
    if not names:
        names = [str(path.relative_to(packages)) for path in packages.rglob("*.py")]
        names = names if len(names) <= _FEW else []
    listed = folder / "modules"
    listed.write_text("".join(f"{name}\n" for name in sorted(names) if "\n" not in name), "utf-8", "surrogateescape")
    run(
        [python, "-I", "-S", "-c", _COMPILE, packages, place, listed],
        environment={"PATH": os.defpath, "LANG": "C.UTF-8"}, cwd=folder, log=lambda _line: None,
    )  # fmt: skip


def _imported(environment: Path) -> list[str]:
    found = []
    for site in environment.glob("lib/python*/site-packages"):
        for path in site.glob("**/__pycache__/*.pyc"):
            module = path.parent.parent / f"{path.name.partition('.')[0]}.py"
            found.append(str(module.relative_to(site)))
    return found
