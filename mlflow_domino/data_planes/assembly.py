"""How a version becomes an image: its requirements locked, laid out, and put with harness, code or model on a base.

The same on every data plane that runs images; what differs is where the image goes next.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_domino import logs, source, tree
from mlflow_domino.builder import Builder
from mlflow_domino.config import Secrets, Settings
from mlflow_domino.context import Entry, entries
from mlflow_domino.data_planes.base import Log
from mlflow_domino.data_planes.declaration import tables
from mlflow_domino.data_planes.machine import harness_settings, install_harness
from mlflow_domino.data_planes.tier import tier_named
from mlflow_domino.errors import InvalidInput, NotFound
from mlflow_domino.home import Home, read_json, write_json, write_text
from mlflow_domino.image import ENDPOINT_IMAGES, ENVIRONMENT, Base, Images, dockerfile, image_named, site_packages
from mlflow_domino.models import Artifact, Version
from mlflow_domino.recorder import Recorder, Unseen

if TYPE_CHECKING:
    from mlflow_domino.environment import Environments

__all__ = ["Assembly", "images_of", "recipes", "working_folder"]

#: File of a version's folder.
_NAMES = "images.json"
#: Folder of what is rendered, and the script in it.
_RECIPES, _SCRIPT = "dockerfiles", "build.sh"
_REFERENCE = r"[a-z0-9][A-Za-z0-9.-]*(:\d+)?(/[a-z0-9][a-z0-9._-]*)+:\w[\w.-]{0,127}"


def recipes(settings: Settings) -> dict[str, str]:
    """Return the Dockerfiles of a version's images, by their names."""
    names = ("seldon", "packages", "endpoint") if settings.is_async else ("packages", "endpoint")
    return {f"{_RECIPES}/{name}/Dockerfile": dockerfile(name) for name in names}


def images_of(folder: Path) -> list[str]:
    """Return the names of images that were written down in a version's folder."""
    return read_json(folder / _NAMES) or []


def working_folder(version: Version) -> str:
    """Return the folder of a version's project or model in its image, which is where it runs."""
    return f"/mnt/{version.settings.username}/{version.settings.project}"


class Assembly:
    """Builds the images of versions.

    Parameters
    ----------
    home : Home
    builder : callable
        Returns what makes images, and sends them to registries; called when one is needed.
    base_image : str
        The environment of versions that name none; ``{python}`` stands for a version such as 3.11.
    """

    def __init__(self, home: Home, builder: Callable[[], Builder], base_image: str) -> None:
        self._home = home
        self._builder_of = builder
        self._base_image = base_image

    def build(self, version: Version, secrets: Secrets, log: Log, *, registry: str = "") -> Artifact:
        """Return what was built, or had been built before, of a version whose source has been fetched.

        Parameters
        ----------
        registry : str
            Where the image is pushed to, and named after; empty: it stays here.

        Raises
        ------
        EnvironmentFailed
            With the resolver's or the builder's own words.
        Failed
            With the registry's.
        """
        folder = self._home.version(version.id)
        values = secrets.variables.values()
        with logs.written(folder / "build.log", _short(log), values) as both:
            built = self._build(version, folder, secrets, both, note=self._note)
            return (
                replace(built, environment=self._pushed(version, built.environment, registry, both))
                if registry
                else built
            )

    def render(self, version: Version, secrets: Secrets, folder: Path, log: Log) -> str:
        """Write the contexts of a version's images into a folder that has its source, and a script that builds them.

        Packages are resolved and laid out as for a build; no image is built, pulled or changed. Of an environment image
        that is not here, and is none of Docker's official ones, nothing is known: nothing is written then.

        Returns
        -------
        str
            Why there are no contexts; empty where there are.
        """
        beside = folder / _RECIPES
        recorder = Recorder(beside, self._builder_of)
        recording = Assembly(self._home, lambda: recorder, self._base_image)
        why = ""
        try:
            told = _short(lambda line: log(logs.redact(line, secrets.variables.values())), "building mlflow-domino/")
            recording._build(version, folder, secrets, told, note=lambda _version, _name: None)
            write_text(beside / _SCRIPT, recorder.script(_SCRIPT), mode=0o755)
            (folder / "requirements.lock").chmod(0o644)
        except Unseen as error:
            why = error.message
        return why

    def export(self, version: Version, reference: str, log: Log, *, user: tuple[str, str] | None = None) -> str:
        """Push the image of a version under another name; return its digest there.

        Raises
        ------
        InvalidInput
            `reference` is no name of an image.
        """
        if not re.fullmatch(_REFERENCE, reference):
            raise InvalidInput(
                f"{reference!r} names no image of a registry, to which an export pushes: registry/name:tag is wanted."
            )
        self._builder.tag(self._image_of(version, log), reference)
        try:
            return self._builder.push(reference, log, user=user)
        finally:
            self._builder.remove_image(reference)

    def restore(self, version: Version, log: Log) -> bool:
        """Have a version's source in its folder, out of its image where somebody else published it."""
        final = source.folder_of(version.source, self._home.version(version.id))
        if final.is_dir():
            return False
        image = self._image_of(version, log)
        beside = final.with_name(f"{final.name}.partial")
        tree.remove(beside)
        beside.mkdir(mode=0o700, parents=True)
        self._builder.extract(image, working_folder(version), beside)
        beside.rename(final)
        return True

    def discard(self, version: Version) -> None:
        """Remove the image of a version from this machine, of one too whose build came to no end."""
        names = {*self._names(version)}
        if version.artifact is not None:
            tag = version.artifact.environment.rpartition(":")[2]
            names |= {version.artifact.environment, f"{ENDPOINT_IMAGES}:{tag}"}
        for name in names:
            self._builder.remove_image(name)

    def _image_of(self, version: Version, log: Log) -> str:
        """Have the image of a version here."""
        if version.artifact is None:
            raise NotFound(f"Version {version.number} was never built, and has no image.")
        name = version.artifact.environment
        if self._builder.image(name) is None:
            if name.startswith(f"{ENDPOINT_IMAGES}:"):
                raise NotFound(f"The image of version {version.number} is not on this machine any more.")
            self._builder.pull(name, log)
        return name

    def _names(self, version: Version) -> list[str]:
        """Return the names that an image of a version has been given here."""
        return images_of(self._home.version(version.id))

    def _note(self, version: Version, name: str) -> None:
        """Write a name down before the image has it: of a build that is killed there is no other record."""
        write_json(self._home.version(version.id) / _NAMES, sorted({*self._names(version), name}))

    def _pushed(self, version: Version, image: str, registry: str, log: Log) -> str:
        """Send an image to a registry; return its name there, whose tag is the hash of its content."""
        name = f"{registry}/mlflow-domino-endpoint:{image.rpartition(':')[2]}"
        self._note(version, name)
        log(f"pushing {name} …")
        self._builder.tag(image, name)
        self._builder.push(name, log)
        return name

    def requirements(self, settings: Settings) -> tuple[str, ...]:
        """Return the requirements in the setting `environment`, without the image that it may name."""
        return image_named(settings.environment, self._environment_images())[1]

    @functools.cached_property
    def _builder(self) -> Builder:
        return self._builder_of()

    @functools.cached_property
    def images(self) -> Images:
        """Images on this machine."""
        return Images(self._home, self._builder)

    @functools.cached_property
    def _environments(self) -> Environments:
        from mlflow_domino.environment import Environments  # here: most verbs build nothing, and start sooner without

        return Environments(self._home)

    def _build(
        self, version: Version, folder: Path, secrets: Secrets, log: Log, *, note: Callable[[Version, str], None]
    ) -> Artifact:
        from mlflow_domino.environment import Fit

        tier_named(version.settings.hardware_tier, self._home)  # known before anything is built
        path = source.folder_of(version.source, folder)
        model = path if version.source.kind == "Registry" else None
        named, requirements = image_named(version.settings.environment, self._environment_images())
        base = self.images.base(named or self._default_environment(version, model), log)
        settings = replace(version.settings, environment=requirements, python_version=base.minor)
        # A model's lock is whole, and goes before what the image has; a project runs on what the image has.
        given = base.packages if named and (model is None or not settings.install_harness_packages) else None
        if base.seldon and settings.is_async and not settings.install_harness_packages:
            given = {**(given or {}), "seldon-core": base.seldon}
        built = self._environments.build(model, settings, secrets, log, given=given)
        fit = Fit(base.version, base.platform, f"{ENVIRONMENT}/{site_packages(base)}", model)

        def lay_out(into: Path) -> None:
            self._environments.lay_out(built.lock_text, settings, secrets, log, into=into, fit=fit)

        python = ""
        if settings.is_async:
            base, python = self._with_seldon(base, settings, secrets, log)
        packages = self.images.packages(base, built.lock_text, lay_out, log, own=bool(named))
        write_text(folder / "requirements.lock", built.lock_text)
        harness = install_harness(self._home)
        image = self._version_image(version, packages, path, harness, python, log, note)
        lock = hashlib.sha256(built.lock_text.encode()).hexdigest()
        return Artifact(image, lock, harness, base.version, tuple(built.notes), python)

    def _with_seldon(self, base: Base, settings: Settings, secrets: Secrets, log: Log) -> tuple[Base, str]:
        from mlflow_domino.microservice import Microservice

        microservice = Microservice(self._home, self.images, self._builder, self._environments, self._base_image)
        return microservice.put_on(base, settings, secrets, log)

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

        return self._base_image.replace("{python}", python_wanted(model, version.settings))

    def _version_image(
        self, version: Version, packages: str, path: Path, harness: str, seldon_python: str, log: Log,
        note: Callable[[Version, str], None],
    ) -> str:  # fmt: skip
        working = working_folder(version)
        settings = harness_settings(None, version, path=working, tokens=None, seldon_python=seldon_python)
        document = json.dumps(settings, indent=1, sort_keys=True).encode() + b"\n"
        contents = [
            *entries(self._home.harnesses / harness, "harness"),
            *entries(path, "source"),
            Entry("harness.json", content=document),
        ]
        decides = hashlib.sha256(f"{harness}\0{version.source.digest}\0".encode() + document).hexdigest()
        return self.images.endpoint(packages, contents, decides, working, log, named=functools.partial(note, version))


def _short(log: Log, *without: str) -> Log:
    def told(line: str) -> None:
        if not line.startswith((" + ", " ---> ", "Removing intermediate", *without)):
            log(line)

    return told
