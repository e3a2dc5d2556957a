"""seldon-core's environment in images: a layer between an environment and the packages of asynchronous versions.

Where the environment's own Python is none that seldon-core runs on, the layer brings one: that of an image such as
``python:3.12-slim-bookworm``, moved to a folder of its own.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from mlflow_domino import seldon
from mlflow_domino.builder import Builder
from mlflow_domino.config import Secrets, Settings
from mlflow_domino.context import Entry, entries
from mlflow_domino.environment import Environments, Fit
from mlflow_domino.errors import EnvironmentFailed, Failed
from mlflow_domino.home import Home
from mlflow_domino.image import ENVIRONMENT, SELDON_IMAGES, Base, Images, dockerfile, site_packages, virtual_environment
from mlflow_domino.resolver import Log, run
from mlflow_domino.workspace import workspace

__all__ = ["Microservice"]

#: Folders in the image: the standard image's own environment of seldon-core, ours, and the interpreter that we bring.
_STANDARD, _OURS, _INTERPRETER = "/opt/domino/seldon", "/opt/domino/microservice", "/opt/domino/interpreter"
_IN_CONTEXT = "opt"
_FORMAT = "1"
#: Of an interpreter's library, what a service does without.
_LEFT_OUT = ("site-packages", "dist-packages", "test", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3")


class Microservice:
    """Puts seldon-core's environment on the images that versions are built on.

    Parameters
    ----------
    home : Home
    images : Images
    builder : Builder
        That of `images`.
    environments : Environments
    base_image : str
        As for `Assembly`: where the interpreter comes from.
    """

    def __init__(
        self, home: Home, images: Images, builder: Builder, environments: Environments, base_image: str
    ) -> None:
        self._home = home
        self._images = images
        self._builder = builder
        self._environments = environments
        self._base_image = base_image

    def put_on(self, base: Base, settings: Settings, secrets: Secrets, log: Log) -> tuple[Base, str]:
        """Return an environment with seldon-core, and the path of the Python that has it.

        Raises
        ------
        EnvironmentFailed
            It cannot be built, or does not run there; with the way out.
        """
        if base.seldon:
            return base, f"{_STANDARD}/bin/python"
        if not settings.install_harness_packages:
            return base, f"{ENVIRONMENT}/bin/python"  # it was checked that the version's own packages have it
        donor = base if base.minor in seldon.PYTHONS else self._donor(base, log)
        built = seldon.build(self._environments, settings, secrets, log, python=donor.minor)
        recipe = dockerfile("seldon")
        decides = "\0".join((_FORMAT, base.id, donor.id, donor.python, built.lock_text, recipe))
        tag = f"{SELDON_IMAGES}:{hashlib.sha256(decides.encode()).hexdigest()[:24]}"
        if self._builder.image(tag) is None:
            with self._home.lock(f"image-{tag.rpartition(':')[2]}"), workspace() as folder:
                if self._builder.image(tag) is None:
                    lay_out = functools.partial(
                        self._environments.lay_out, built.lock_text, seldon.settings_of(settings), secrets, log
                    )
                    made = [Entry("Dockerfile", content=recipe.encode())]
                    made += self._contents(base, donor, built.python, lay_out, folder)
                    self._images.build(tag, made, {"ENVIRONMENT": base.id}, log)
                    self._check(tag, base)
        image = self._builder.image(tag)
        assert image is not None
        return replace(base, id=image.id), f"{_OURS}/bin/python"

    def _contents(
        self, base: Base, donor: Base, own: Path, lay_out: Callable[..., None], folder: Path
    ) -> Iterator[Entry]:
        packages = folder / "packages"
        packages.mkdir()
        # Once here, so that there is byte code of what is imported, which goes into the image.
        _run([own, "-W", "ignore", "-c", seldon.CHECK], folder)
        fit = Fit(donor.version, base.platform, f"{_OURS}/{site_packages(donor)}")
        lay_out(into=packages, fit=fit)
        python = donor
        if donor is not base:
            moved = f"{_INTERPRETER}/bin/{os.path.basename(donor.python)}"
            yield from self._interpreter(donor, own, folder)
            python = replace(donor, python=moved)
        into = f"{_IN_CONTEXT}/{os.path.basename(_OURS)}"
        yield from virtual_environment(python, packages, own=False, into=into, place=_OURS)

    def _interpreter(self, donor: Base, own: Path, folder: Path) -> Iterator[Entry]:
        """Yield an image's interpreter with its standard library; it finds both beside itself, wherever that is."""
        prefix = PurePosixPath(donor.python).parent.parent
        root, library = folder / "interpreter", f"python{donor.minor}"
        # A distribution's own has no library of its own there, and much that is not Python's.
        for part in ("bin", f"lib/{library}" if str(prefix) == "/usr" else "lib"):
            (root / part).mkdir(parents=True)
            self._builder.extract(donor.id, str(prefix / part), root / part)
        for name in _LEFT_OUT:
            shutil.rmtree(root / "lib" / library / name, ignore_errors=True)
        command: list[str | Path] = [own, "-I", "-m", "compileall", "-q", "-f", "--invalidation-mode", "unchecked-hash"]
        _run([*command, "-s", root, "-p", _INTERPRETER, root / "lib" / library], folder)
        into = f"{_IN_CONTEXT}/{os.path.basename(_INTERPRETER)}"
        for entry in entries(root, into, byte_code=True):
            words = PurePosixPath(entry.name[len(into) + 1 :]).parts
            if words == ("bin", os.path.basename(donor.python)) or (
                words[0] == "lib" and (words[1] == library or words[1].startswith("libpython"))
            ):
                yield entry

    def _donor(self, base: Base, log: Log) -> Base:
        """Return an image whose interpreter seldon-core runs on; one that is here before one that is not."""
        wanted = {self._base_image.format(python=minor): minor for minor in seldon.PYTHONS}
        said = []
        for reference in sorted(wanted, key=lambda name: self._builder.image(name) is None):
            try:
                donor = self._images.base(reference, log)
            except EnvironmentFailed as error:
                said.append(str(error))
                continue
            if donor.minor in seldon.PYTHONS:
                log(
                    f"seldon-core gets the Python {donor.version} of {reference}, beside the {base.version} of the model"
                )
                return donor
            said.append(f"{reference} has Python {donor.version}.")
        raise EnvironmentFailed(_way_out(base), log_tail="\n".join(said))

    def _check(self, image: str, base: Base) -> None:
        try:
            self._builder.run(image, [f"{_OURS}/bin/python", "-W", "ignore", "-c", seldon.CHECK])
        except Failed as error:
            self._builder.remove_image(image)
            raise EnvironmentFailed(_way_out(base), log_tail=error.log_tail or error.message) from error


def _run(command: Sequence[str | Path], folder: Path) -> None:
    run(command, environment={"PATH": os.defpath, "LANG": "C.UTF-8"}, cwd=folder, log=lambda _line: None)


def _way_out(base: Base) -> str:
    return (
        f"seldon-core, which asynchronous endpoints need, runs on Python {seldon.PYTHONS[-1]} to {seldon.PYTHONS[0]}, and "
        f"cannot be put into {base.reference}, which has {base.version}. Use an environment image that carries it, as "
        "dockerfiles/environments/standard does, or one with such a Python."
    )
