"""Builds the virtual environments that versions run in: one for each lock, shared by all versions that have it.

Rules
-----
- A lock is resolved once and kept with its version; `rebuild` installs that lock and resolves nothing.
- The same recipe (requirement lines, interpreter, indexes, harness) that was locked before on this home gives the
  same lock again, without asking the index: a new version with the same requirements starts in the same
  environment. Removing the environment forgets the recipe, so the next version is resolved anew.
- Byte code is written as modules are first imported, by the model's trial for most: compiling all that is installed
  takes several times as long as installing it, and most of it is never imported.
- An environment stands in ``environments/<hash of the lock>`` and counts once its marker is written, which is last.
  What a killed builder left is removed by the next one. Builders of one environment take turns, by a lock that uv
  inherits: as long as a child of a killed builder lives, nobody else writes there.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mlflow_domino.bytecode import compile_used
from mlflow_domino.config import Secrets, Settings
from mlflow_domino.disk import size_of
from mlflow_domino.errors import Conflict, EnvironmentFailed
from mlflow_domino.home import Home, read_json, write_json
from mlflow_domino.indexes import Indexes
from mlflow_domino.interpreter import Interpreter, find
from mlflow_domino.lean import fitness_key, misfit
from mlflow_domino.lock import HARNESS, SELDON, Recipe, environment_hash, python_of
from mlflow_domino.recipes import Recipes
from mlflow_domino.requirements import MODEL_FOLDER, ModelFacts, Requirement, Requirements, listed, of_model, read_facts
from mlflow_domino.resolver import Log, Uv
from mlflow_domino.workspace import workspace

__all__ = ["Built", "Environments", "Fit", "Stored", "python_wanted"]

_MARKER = "domino.json"
_TRIAL_S = 60.0


@dataclass(frozen=True)
class Built:
    """What a version runs in.

    Attributes
    ----------
    environment : str
        Hash of the lock, the name of the folder.
    python : Path
        The environment's program.
    lock_text : str
        To be kept with the version.
    python_version : str
        Full version of the interpreter.
    notes : tuple of str
        What a person should know.
    """

    environment: str
    python: Path
    lock_text: str
    python_version: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fit:
    """What packages must fit that are not for this machine.

    Attributes
    ----------
    python_version : str
        Full version of the interpreter.
    platform : str
        As uv names it, such as ``x86_64-manylinux_2_36``.
    place : str
        Folder from which they will be imported.
    model : Path or None
        As for `Environments.rebuild`.
    """

    python_version: str
    platform: str
    place: str
    model: Path | None = None


@dataclass(frozen=True)
class Stored:
    """An environment on disk; `size` in bytes as files say, of which uv's cache shares most."""

    environment: str
    python_version: str
    size: int
    last_used_ms: int
    complete: bool


class Environments:
    """The environments of a home.

    Parameters
    ----------
    home : Home
        Its ``environments`` may be a link to another home's.
    """

    def __init__(self, home: Home) -> None:
        self._home = home

    def path(self, environment: str) -> Path:
        return self._root / environment

    def has(self, environment: str) -> bool:
        """Whether an environment is complete, and its interpreter is still on this machine."""
        path = self.path(environment)
        return (path / _MARKER).is_file() and (path / "bin" / "python").exists()

    def build(
        self,
        model: Path | None,
        settings: Settings,
        secrets: Secrets,
        log: Log,
        *,
        given: Mapping[str, str] | None = None,
    ) -> Built:
        """Resolve and install what a version needs, or find it done.

        Parameters
        ----------
        model : Path or None
            Folder of an MLflow model; None for a project, whose requirements are in ``settings.environment``.
        settings : Settings
            Of the version.
        secrets : Secrets
            Indexes with passwords, and variables that lines refer to as ``${NAME}`` and the model may need to load.
        log : callable
            Takes each line of what uv and the model's trial say, as it comes.
        given : mapping of str to str, or None
            Versions of packages that are there already, as for `Recipe.of`.

        Raises
        ------
        InvalidInput
            A line of the requirements is wrong; with file and line.
        EnvironmentFailed
            No interpreter, nothing that fits all requirements, or no way to install them; with the tool's message.
        """
        facts = read_facts(model) if model else None
        own = of_model(model) if model else Requirements()
        asked = _joined(own, listed(settings.environment))
        indexes = Indexes.find(settings, secrets, asked)
        with self._workspace() as folder:
            uv = Uv(indexes, folder, log, model)
            wanted = _wanted(facts, settings)
            interpreter, notes = _interpreter(wanted, settings, uv)
            recipe = Recipe.of(
                asked, facts, interpreter,
                indexes=indexes.key(), install_harness=settings.install_harness_packages, given=given,
                needs=_needs(settings),
            )  # fmt: skip
            lock, more = self._settled(recipe, uv, model, facts, settings, secrets)
            notes = (*notes, *asked.notes, *more)
            self._install(lock, interpreter, uv)
        for note in notes:
            log(f"note: {note}")
        return self._built(lock, interpreter.version, notes)

    def rebuild(
        self, lock_text: str, settings: Settings, secrets: Secrets, log: Log, *, model: Path | None = None
    ) -> Built:
        """Install a stored lock again, in the same folder as before; nothing is resolved, nothing done if it is there.

        Parameters
        ----------
        lock_text : str
            As `build` returned it.
        settings : Settings
            Of the version.
        secrets : Secrets
            As for `build`.
        log : callable
            As for `build`.
        model : Path or None
            The version's model, which holds files that the lock may refer to, and the credentials of its URLs.

        Raises
        ------
        EnvironmentFailed
        """
        environment = environment_hash(lock_text)
        if self.has(environment):
            os.utime(self.path(environment) / _MARKER)
            return self._built(lock_text, python_of(lock_text), ())
        if MODEL_FOLDER in lock_text and model is None:
            raise EnvironmentFailed("The lock refers to files of the model, and the model is not there any more.")
        asked = _joined(of_model(model) if model else Requirements(), listed(settings.environment))
        with self._workspace() as folder:
            uv = Uv(Indexes.find(settings, secrets, asked), folder, log, model)
            interpreter, notes = _interpreter(python_of(lock_text), settings, uv)
            self._install(lock_text, interpreter, uv)
        return self._built(lock_text, interpreter.version, notes)

    def lay_out(self, lock_text: str, settings: Settings, secrets: Secrets, log: Log, *, into: Path, fit: Fit) -> None:
        """Install a lock's packages into a folder, for a Python that need not be on this machine.

        Parameters
        ----------
        lock_text : str
            As `build` returned it.
        into : Path
            Empty folder; as ``pip install --target`` leaves it.
        fit : Fit
            What the packages must fit.

        Raises
        ------
        EnvironmentFailed
            With uv's message, such as that a package has no wheel for the platform.
        """
        asked = _joined(of_model(fit.model) if fit.model else Requirements(), listed(settings.environment))
        with self._workspace() as folder:
            uv = Uv(Indexes.find(settings, secrets, asked), folder, log, fit.model)
            interpreter, _ = _interpreter(python_of(lock_text), settings, uv)
            file = folder / "requirements.lock"
            file.write_text(lock_text, "utf-8")
            finished = uv.run(
                "pip", "install", "--python", interpreter.path, "--target", into, "--python-version", fit.python_version,
                "--python-platform", fit.platform, "--no-deps", "-r", file,
            )  # fmt: skip
            if finished.code == 0:
                used = self.path(environment_hash(lock_text))
                compile_used(into, interpreter.path, used, place=fit.place, folder=folder)
        if finished.code != 0:
            raise EnvironmentFailed(
                f"The packages of the lock cannot be installed for Python {fit.python_version} on {fit.platform}. What "
                "has no wheel for it must be in the environment image, or in a folder of find_links.",
                log_tail=finished.tail,
            )

    def stored(self) -> list[Stored]:
        """List what is on disk, the longest unused first."""
        found = []
        for path in self._root.iterdir() if self._root.is_dir() else ():
            if re.fullmatch(r"[0-9a-f]{24}", path.name):
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    marker = path / _MARKER
                    said = read_json(marker) or {}
                    used = (marker if said else path).stat().st_mtime
                    size = said["size"] if said else size_of(path)
                    found.append(Stored(path.name, said.get("python", ""), size, int(used * 1000), self.has(path.name)))
        return sorted(found, key=lambda stored: stored.last_used_ms)

    def remove(self, environment: str) -> bool:
        """Remove an environment and what was remembered of it; False when there was none.

        The caller knows that nothing runs in it.

        Raises
        ------
        Conflict
            Somebody is building it right now.
        """
        self._recipes.forget(environment)
        (self._root / "verdicts" / f"{environment}.json").unlink(missing_ok=True)
        path = self.path(environment)
        with self._locks.lock(environment, wait=False, conflict=f"Environment {environment} is being built."):
            there = path.exists()
            (path / _MARKER).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)
        return there

    @property
    def _root(self) -> Path:
        return self._home.environments.resolve()

    @property
    def _recipes(self) -> Recipes:
        return Recipes(self._root / "recipes")

    @property
    def _locks(self) -> Home:
        """Locks stand beside the environments, since several homes may share them."""
        return Home(self._root)

    @contextlib.contextmanager
    def _workspace(self) -> Iterator[Path]:
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            with workspace() as folder:
                yield folder
        except OSError as error:
            raise EnvironmentFailed(f"The environment cannot be written: {error}.") from error

    def _built(self, lock: str, python_version: str, notes: tuple[str, ...]) -> Built:
        environment = environment_hash(lock)
        python = self.path(environment) / "bin" / "python"
        return Built(environment, python, lock, python_version, tuple(dict.fromkeys(notes)))

    def _settled(
        self, recipe: Recipe, uv: Uv, model: Path | None, facts: ModelFacts | None, settings: Settings, secrets: Secrets
    ) -> tuple[str, tuple[str, ...]]:
        """Choose the lean lock if the model works with it, the whole one otherwise; return it with notes."""
        lean = self._recipes.lock(recipe, uv, "lean") if recipe.mlflow and model and facts else ""
        if not lean or model is None or facts is None:
            return self._recipes.lock(recipe, uv, "whole"), ()
        verdicts = self._root / "verdicts" / f"{environment_hash(lean)}.json"
        known, key = read_json(verdicts) or {}, fitness_key(model, facts)
        if key not in known:
            self._install(lean, recipe.interpreter, uv)
            uv.log("trying the model without MLflow's server …")
            known[key] = misfit(
                self.path(environment_hash(lean)) / "bin" / "python", model, variables=secrets.variables,
                folder=uv.folder, deadline_s=min(_TRIAL_S, settings.start_timeout_s), log=uv.log,
            )  # fmt: skip
            write_json(verdicts, known)
        if not known[key]:
            replaced = recipe.mlflow is not None and recipe.mlflow.name == "mlflow"
            return lean, ("mlflow-skinny is installed in place of mlflow; the model works with it",) if replaced else ()
        return self._recipes.lock(recipe, uv, "whole"), (
            f"the whole of mlflow is installed, since the model did not work with mlflow-skinny: {known[key]}",
        )

    def _install(self, lock: str, interpreter: Interpreter, uv: Uv) -> None:
        environment = environment_hash(lock)
        path = self.path(environment)
        if not self.has(environment):
            with self._turn(environment, uv.log) as descriptor:
                if not self.has(environment):
                    self._make(path, lock, interpreter, uv, descriptor)
        os.utime(path / _MARKER)

    @contextlib.contextmanager
    def _turn(self, environment: str, log: Log) -> Iterator[int]:
        with contextlib.ExitStack() as stack:
            try:
                descriptor = stack.enter_context(self._locks.lock(environment, wait=False))
            except Conflict:
                log("waiting for another build of the same environment …")
                descriptor = stack.enter_context(self._locks.lock(environment))
            yield descriptor

    def _make(self, path: Path, lock: str, interpreter: Interpreter, uv: Uv, descriptor: int) -> None:
        started = time.monotonic()
        shutil.rmtree(path, ignore_errors=True)
        file = uv.folder / "requirements.lock"
        file.write_text(lock, "utf-8")
        try:
            for step in (
                ("venv", "--quiet", "--no-project", "--python", interpreter.path, path),
                ("pip", "install", "--python", path / "bin" / "python", "--no-deps", "-r", file),
            ):
                finished = uv.run(*step, keep=[descriptor])
                if finished.code != 0:
                    raise EnvironmentFailed("The packages of the lock cannot be installed.", log_tail=finished.tail)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
        write_json(path / _MARKER, {"python": interpreter.version, "size": size_of(path)})
        uv.log(f"installed in {time.monotonic() - started:.1f} s")


def _joined(first: Requirements, second: Requirements) -> Requirements:
    return replace(first, items=(*first.items, *second.items))


def _needs(settings: Settings) -> tuple[Requirement, ...]:
    # What we may not add to must have seldon-core itself; else that gets an environment of its own.
    return (*HARNESS, SELDON) if settings.is_async and not settings.install_harness_packages else HARNESS


def python_wanted(model: Path | None, settings: Settings) -> str:
    """Return the major and minor version of Python that a version wants, such as ``3.11``."""
    return ".".join(_wanted(read_facts(model) if model else None, settings).split(".")[:2])


def _wanted(facts: ModelFacts | None, settings: Settings) -> str:
    own = f"{sys.version_info[0]}.{sys.version_info[1]}"
    return settings.python_version or (facts.python_version if facts else "") or own


def _interpreter(wanted: str, settings: Settings, uv: Uv) -> tuple[Interpreter, tuple[str, ...]]:
    def download(minor: str) -> str:
        uv.log(f"Python {minor} is not on this machine; asking uv to download it …")
        finished = uv.run("python", "install", "--no-bin", minor)
        return "" if finished.code == 0 else finished.tail or f"uv ended with code {finished.code}"

    allowed = settings.python_downloads and not settings.offline
    return find(wanted, download=download if allowed else None)
