"""How a version becomes an image: its requirements locked, laid out, and put with harness, code or model on a base.

The same on every data plane that runs images; what differs is where the image goes next.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_domino import logs, source
from mlflow_domino.config import Secrets, Settings
from mlflow_domino.data_planes.base import Log
from mlflow_domino.data_planes.declaration import tables
from mlflow_domino.data_planes.machine import harness_settings, install_harness
from mlflow_domino.data_planes.tier import tier_named
from mlflow_domino.errors import InvalidInput
from mlflow_domino.home import Home, write_text
from mlflow_domino.image import ENVIRONMENT, Entry, Images, entries, image_named, site_packages
from mlflow_domino.models import Artifact, Version

if TYPE_CHECKING:
    from mlflow_domino.environment import Environments

__all__ = ["Assembly", "working_folder"]


def working_folder(version: Version) -> str:
    """Return the folder of a version's project or model in its image, which is where it runs."""
    return f"/mnt/{version.settings.username}/{version.settings.project}"


class Assembly:
    """Builds the images of versions.

    Parameters
    ----------
    home : Home
    images : Images
        With the builder that makes them.
    base_image : str
        The environment of versions that name none; ``{python}`` stands for a version such as 3.11.
    """

    def __init__(self, home: Home, images: Images, base_image: str) -> None:
        self._home = home
        self.images = images
        self._base_image = base_image

    def build(self, version: Version, secrets: Secrets, log: Log) -> Artifact:
        """Return what was built, or had been built before, of a version whose source has been fetched.

        Raises
        ------
        EnvironmentFailed
            With the resolver's or the builder's own words.
        """
        folder = self._home.version(version.id)
        values = secrets.variables.values()
        with logs.written(folder / "build.log", _short(log), values) as both:
            return self._build(version, folder, secrets, both)

    def requirements(self, settings: Settings) -> tuple[str, ...]:
        """Return the requirements in the setting `environment`, without the image that it may name."""
        return image_named(settings.environment, self._environment_images())[1]

    @functools.cached_property
    def _environments(self) -> Environments:
        from mlflow_domino.environment import Environments  # here: most verbs build nothing, and start sooner without

        return Environments(self._home)

    def _build(self, version: Version, folder: Path, secrets: Secrets, log: Log) -> Artifact:
        from mlflow_domino.environment import Fit

        tier_named(version.settings.hardware_tier, self._home)  # known before anything is built
        path = source.folder_of(version.source, folder)
        model = path if version.source.kind == "Registry" else None
        named, requirements = image_named(version.settings.environment, self._environment_images())
        base = self.images.base(named or self._default_environment(version, model), log)
        settings = replace(version.settings, environment=requirements, python_version=base.minor)
        # A model's lock is whole, and goes before what the image has; a project runs on what the image has.
        given = base.packages if named and (model is None or not settings.install_harness_packages) else None
        built = self._environments.build(model, settings, secrets, log, given=given)
        fit = Fit(base.version, base.platform, f"{ENVIRONMENT}/{site_packages(base)}", model)

        def lay_out(into: Path) -> None:
            self._environments.lay_out(built.lock_text, settings, secrets, log, into=into, fit=fit)

        packages = self.images.packages(base, built.lock_text, lay_out, log, own=bool(named))
        write_text(folder / "requirements.lock", built.lock_text)
        harness = install_harness(self._home)
        image = self._version_image(version, packages, path, harness, log)
        lock = hashlib.sha256(built.lock_text.encode()).hexdigest()
        return Artifact(image, lock, harness, base.version, tuple(built.notes))

    def _environment_images(self) -> dict[str, str]:
        """Return the images that ``[environments.NAME]`` of the configuration file names."""
        found = {}
        for name, table in tables(self._home.config, "environments").items():
            if set(table) != {"image"} or not isinstance(table["image"], str):
                raise InvalidInput(
                    f"{self._home.config}: [environments.{name}] wants one key, image, with an image's name."
                )
            found[name] = table["image"]
        return found

    def _default_environment(self, version: Version, model: Path | None) -> str:
        """Return the image for the Python that the version wants."""
        from mlflow_domino.environment import python_wanted

        return self._base_image.format(python=python_wanted(model, version.settings))

    def _version_image(self, version: Version, packages: str, path: Path, harness: str, log: Log) -> str:
        working = working_folder(version)
        settings = harness_settings(None, version, path=working, tokens=None)
        document = json.dumps(settings, indent=1, sort_keys=True).encode() + b"\n"
        contents = [
            *entries(self._home.harnesses / harness, "harness"),
            *entries(path, "source"),
            Entry("harness.json", content=document),
        ]
        decides = hashlib.sha256(f"{harness}\0{version.source.digest}\0".encode() + document).hexdigest()
        return self.images.endpoint(packages, contents, decides, working, log)


def _short(log: Log) -> Log:
    def told(line: str) -> None:
        if not line.startswith((" + ", " ---> ", "Removing intermediate")):
            log(line)

    return told
