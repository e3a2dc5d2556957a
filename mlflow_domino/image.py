"""Images of versions, in two layers of ours: the lock's packages on an environment, and a version on top of that.

The packages are fetched and laid out here, by uv, for the environment's Python and platform; the build itself copies,
downloads nothing and knows no index, no password and no certificate. So nothing secret can be in a layer, any builder
will do, and the first image is built once for each lock: a change of code sends the second alone.

Contexts are deterministic, byte code by content. Tags are hashes of everything that decides the content, so that what
is there already is not built again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow_domino.builder import Builder
from mlflow_domino.context import Entry, context, entries
from mlflow_domino.errors import EnvironmentFailed, Failed, InvalidInput
from mlflow_domino.home import Home, read_json, write_json
from mlflow_domino.workspace import workspace

__all__ = [
    "ENDPOINT_IMAGES",
    "ENVIRONMENT",
    "PACKAGE_IMAGES",
    "SELDON_IMAGES",
    "UID",
    "Base",
    "Images",
    "dockerfile",
    "image_named",
    "site_packages",
    "virtual_environment",
]

#: Domino's user and group, with which replicas run.
UID = 12574
ENVIRONMENT = "/opt/domino/environment"
PACKAGE_IMAGES = "mlflow-domino/packages"
SELDON_IMAGES = "mlflow-domino/seldon"
ENDPOINT_IMAGES = "mlflow-domino/endpoint"
_IMAGE = re.compile(
    r"(?=[^@]*[/:@]|[^@]*@)[a-z0-9][a-z0-9.-]*(:\d+)?(/[a-z0-9][a-z0-9._-]*)*(:\w[\w.-]{0,127})?(@sha256:[0-9a-f]{64})?"
)
_FILES = (".whl", ".zip", ".gz", ".txt")
_FORMAT = "2"

# Runs in the environment, on Python 3.8 and later; says all that a build has to know of it.
_PROBE = """
import json, os, platform, re, subprocess, sys
try:
    from importlib.metadata import distributions
    found = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"]}
except Exception:
    found = {}
lines = [line.split(":") for line in open("/etc/passwd")]
code = "import pyuwsgi, seldon_core.wrapper; print(seldon_core.__version__)"
try:
    seldon = subprocess.check_output(["/opt/domino/seldon/bin/python", "-W", "ignore", "-c", code])
except (OSError, subprocess.CalledProcessError):
    seldon = b""
print(json.dumps({
    "python": os.path.realpath(sys.executable),
    "version": "%d.%d.%d" % sys.version_info[:3],
    "machine": platform.machine(),
    "libc": "-".join(platform.libc_ver()) or "musl",
    "packages": found,
    "user": os.getuid(),
    "served": any(len(line) > 3 and line[2:4] == ["12574", "12574"] for line in lines),
    "seldon": seldon.decode().strip(),
}))
"""


@dataclass(frozen=True)
class Base:
    """An environment image, as a program that ran in it saw it.

    Attributes
    ----------
    reference, id : str
        Its name, and the digest of its configuration.
    python, version : str
        The interpreter's real path, and its full version.
    machine, libc : str
        Such as ``x86_64`` and ``glibc-2.36``.
    packages : mapping of str to str
        Versions of what is installed, by name.
    user : int
        With which its programs run unless told otherwise: the last ``USER``.
    served : bool
        Whether it has the user and group 12574.
    seldon : str
        Version of seldon-core in an environment of its own, as the standard image has it; empty where there is none.
    """

    reference: str
    id: str
    python: str
    version: str
    machine: str
    libc: str
    packages: Mapping[str, str]
    user: int
    served: bool
    seldon: str = ""

    @property
    def minor(self) -> str:
        return ".".join(self.version.split(".")[:2])

    @property
    def platform(self) -> str:
        """The platform as uv names it: wheels for it, and for all that it can run, fit."""
        name, _, version = self.libc.partition("-")
        if name != "glibc":
            return f"{self.machine}-unknown-linux-musl"
        minor = int(version.split(".")[1]) if re.fullmatch(r"2\.\d+", version) else 17
        fit = max((known for known in (17, 28, *range(31, 41)) if known <= minor), default=17)
        return f"{self.machine}-manylinux_2_{fit}"


class Images:
    """Builds images, and remembers what it saw in environments.

    Parameters
    ----------
    home : Home
    builder : Builder
    """

    def __init__(self, home: Home, builder: Builder) -> None:
        self._home = home
        self._builder = builder

    def base(self, reference: str, log: Callable[[str], None]) -> Base:
        """Have an environment here, and look into it.

        Raises
        ------
        EnvironmentFailed
            It cannot be had, has no Python that will do, or lacks the user that replicas run with.
        """
        identity = self._builder.pull(reference, log).id
        path = self._home.root / "images" / f"{identity.rpartition(':')[2][:24]}.json"
        seen = read_json(path)
        if seen is None or "seldon" not in seen:
            seen = self._probed(reference)
            write_json(path, seen)
        base = Base(reference, identity, **seen)
        if tuple(map(int, base.version.split(".")[:2])) < (3, 8):
            raise EnvironmentFailed(f"{reference} has Python {base.version}; the harness needs 3.8 or later.")
        if not base.served and base.user != 0:
            raise EnvironmentFailed(
                f"{reference} has no user with uid and gid {UID}, with which replicas run, and the build cannot make "
                f"one as user {base.user}. Add one to the image (RUN groupadd -g {UID} domino && useradd -u {UID} -g "
                f"{UID} -m domino), or end its Dockerfile with USER root."
            )
        return base

    def packages(
        self, base: Base, lock: str, lay_out: Callable[[Path], None], log: Callable[[str], None], *, own: bool
    ) -> str:
        """Return the image with a lock's packages on an environment; built where there is none yet.

        Parameters
        ----------
        lock : str
            Decides the tag, with the environment.
        lay_out : callable
            Installs the lock into an empty folder, as ``pip install --target`` does.
        own : bool
            Whether the environment's own packages can be imported too, behind the lock's.
        """
        recipe = dockerfile("packages")
        tag = f"{PACKAGE_IMAGES}:{_digest(_FORMAT, base.id, base.python, lock, recipe, str(own))}"
        if self._builder.image(tag) is None:
            with self._home.lock(f"image-{tag.rpartition(':')[2]}"), workspace() as folder:
                if self._builder.image(tag) is None:
                    lay_out(folder)
                    made = virtual_environment(base, folder, own=own)
                    self.build(
                        tag, [Entry("Dockerfile", content=recipe.encode()), *made], {"ENVIRONMENT": base.id}, log
                    )
        return tag

    def endpoint(
        self, packages: str, contents: Sequence[Entry], decides: str, working: str, log: Callable[[str], None],
        *, named: Callable[[str], None],
    ) -> str:  # fmt: skip
        """Return the image of a version; built where there is none yet.

        Parameters
        ----------
        packages : str
            What it is built on.
        contents : sequence of Entry
            The context, without its Dockerfile.
        decides : str
            Digest of what `contents` hold.
        working : str
            Folder of the project or model in the image.
        named : callable
            Told the image's name before there is one of that name.
        """
        recipe = dockerfile("endpoint")
        tag = f"{ENDPOINT_IMAGES}:{_digest(_FORMAT, packages, decides, working, recipe)}"
        named(tag)
        if self._builder.image(tag) is None:
            files = [Entry("Dockerfile", content=recipe.encode()), *contents]
            self.build(tag, files, {"PACKAGES": packages, "WORKING_DIR": working}, log)
        return tag

    def unused(self, before_s: float) -> list[tuple[str, int]]:
        """Return tag and bytes of each image of packages, or of seldon-core's, that no other image is built on.

        Versions' images are, gateways', and what somebody has exported.

        Parameters
        ----------
        before_s : float
            Those that were built before this time (seconds since the epoch) only.
        """
        lower = tuple(f"{repository}:" for repository in (PACKAGE_IMAGES, SELDON_IMAGES))
        there = self._builder.images("")
        above = [image.layers for image in there if any(not name.startswith(lower) for name in image.names)]
        found = []
        for repository in (PACKAGE_IMAGES, SELDON_IMAGES):
            for image in self._builder.images(repository):
                used = any(other[: len(image.layers)] == image.layers for other in above)
                if not used and image.built_s < before_s:
                    found += [(name, image.size) for name in image.names if name.startswith(f"{repository}:")]
        return sorted(found)

    def build(self, tag: str, files: Sequence[Entry], arguments: Mapping[str, str], log: Callable[[str], None]) -> None:
        """Build an image out of a context, with its ``Dockerfile`` among the files."""
        log(f"building {tag} …")
        with tempfile.TemporaryFile() as archive:
            context(files, archive)
            archive.seek(0)
            self._builder.build(archive, tag, arguments=arguments, log=log)

    def _probed(self, reference: str) -> dict[str, object]:
        for program in ("python3", "python", "/usr/local/bin/python3", "/opt/conda/bin/python"):
            try:
                printed = self._builder.run(reference, [program, "-c", _PROBE])
                seen: dict[str, object] = json.loads(printed.splitlines()[-1])
                return seen
            except Failed as error:
                if "executable file not found" not in str(error) and "no such file" not in str(error):
                    raise EnvironmentFailed(f"{reference}: its Python does not run.", log_tail=str(error)) from error
            except (ValueError, IndexError) as error:
                raise EnvironmentFailed(f"{reference}: its {program} is no Python that answers.") from error
        raise EnvironmentFailed(f"{reference} has no Python: put python3 (3.8 or later) on the image's PATH.")


def image_named(environment: Sequence[str], known: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """Part the setting `environment` into an image's name, which may be empty, and requirements.

    Parameters
    ----------
    known : mapping of str to str
        Images by the names that ``config.toml`` gives them.

    Raises
    ------
    InvalidInput
        Where there are two images.
    """
    shaped = [item for item in environment if _IMAGE.fullmatch(item) and not item.endswith(_FILES)]
    images = [item for item in environment if item in known or item in shaped]
    if len(images) > 1:
        raise InvalidInput(f"environment: one image is wanted, not {len(images)}: {', '.join(images)}.")
    named = known.get(images[0], images[0]) if images else ""
    return named, tuple(item for item in environment if item not in images)


def dockerfile(name: str) -> str:
    """Return one of the Dockerfiles: data of the wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    shipped = package / "_dockerfiles"
    folder = shipped if shipped.is_dir() else package.parent / "dockerfiles"
    return (folder / name / "Dockerfile").read_text("utf-8")


def site_packages(base: Base) -> str:
    """Return where packages are, in the virtual environment."""
    return f"lib/python{base.minor}/site-packages"


def virtual_environment(
    base: Base, packages: Path, *, own: bool, into: str = "packages", place: str = ENVIRONMENT
) -> list[Entry]:
    """Return a virtual environment of an image's interpreter, as members of a context.

    Parameters
    ----------
    packages : Path
        As ``pip install --target`` leaves it.
    own : bool
        As for `Images.packages`.
    into, place : str
        Its folder in the context, and in the image.
    """
    settings = {
        "home": os.path.dirname(base.python),
        "include-system-site-packages": "true" if own else "false",
        "version": base.version,
    }
    text = "".join(f"{key} = {value}\n" for key, value in settings.items())
    made = [
        Entry(f"{into}/pyvenv.cfg", content=text.encode()),
        Entry(f"{into}/bin/python", link=base.python),
        Entry(f"{into}/bin/python3", link="python"),
        Entry(f"{into}/bin/python{base.minor}", link="python"),
    ]
    site = f"{into}/{site_packages(base)}"
    for entry in entries(packages, site, byte_code=True):
        name = entry.name[len(site) + 1 :]
        if name in (".lock",) or name.endswith("/uv_cache.json"):
            continue
        if name.startswith("bin/"):
            made.append(_script(entry, f"{into}/{name}", place))
        else:
            made.append(entry)
    return made


def _script(entry: Entry, name: str, place: str) -> Entry:
    """Have a script run under the image's interpreter instead of this machine's."""
    content = entry.path.read_bytes() if entry.path else entry.content
    first, newline, rest = content.partition(b"\n")
    if first.startswith(b"#!") and b"python" in first:
        content = f"#!{place}/bin/python".encode() + newline + rest
    return Entry(name, content=content, link=entry.link, program=True)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:24]
