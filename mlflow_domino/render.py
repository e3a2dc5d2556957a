"""Writes what would be built and run into a folder; of what runs, nothing is changed."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlflow_domino import source, tree
from mlflow_domino.config import Secrets, Settings, parse, settings_to_json
from mlflow_domino.controller import Controller, routes_to
from mlflow_domino.data_planes.base import DataPlane, Log, World
from mlflow_domino.errors import AlreadyExists, InvalidInput
from mlflow_domino.home import write_text
from mlflow_domino.models import Artifact, Endpoint, Status, Target, Version, new_id

__all__ = ["write"]


def write(
    controller: Controller, folder: Path, name: str, model_uri: str | None, config: Mapping[str, Any], image: str = "",
    *, context: bool = True, log: Callable[[str], None] | None = None,
) -> list[str]:  # fmt: skip
    """Write the files of the version that `create` or `update` with the same arguments would make.

    Parameters
    ----------
    controller : Controller
        Of the data plane.
    folder : Path
        Made here; the source is copied into it, and the files are beside it.
    name : str
        Of an endpoint, or of one that could be.
    model_uri : str or None
        None for what the endpoint has now.
    config : mapping
        Settings, on top of the endpoint's own.
    image : str
        Of the version, where it has been built and pushed already; for a data plane that keeps its own records.
    context : bool
        Whether the contexts of the version's images are written, where it has some and `image` is not given: packages
        are resolved and laid out for that, and a model may be tried with them, as for a build.
    log : callable or None
        Takes what resolving and laying out packages says, as it comes.

    Returns
    -------
    list of str
        Names of the files, without those that contexts hold.

    Raises
    ------
    AlreadyExists
        When the folder is there.
    """
    if folder.exists():
        raise AlreadyExists(f"{folder} exists; name a new folder.")
    if image and controller.plane.own_records() is None:
        raise InvalidInput("render: --image is for data planes of kind kubernetes, where files are all that it takes.")
    try:
        with tree.storage_errors("What is rendered cannot be written"):
            return _write(
                controller, folder, name, model_uri, config, image, log or _silent, context=context and not image
            )
    except BaseException:
        tree.remove(folder)
        raise


def _write(
    controller: Controller, folder: Path, name: str, model_uri: str | None, config: Mapping[str, Any], image: str,
    log: Log, *, context: bool,
) -> list[str]:  # fmt: skip
    known = next((e for e in controller.records.endpoints() if name in (e.name, e.id)), None)
    latest = controller.find_version(name) if known is not None and known.latest is not None else None
    base = known.settings if known else Settings()
    before = controller.secrets(known) if known else Secrets()
    settings, secrets = parse(config, base=base, base_secrets=before)
    if model_uri is not None:
        fetched = source.fetch(model_uri, settings, folder, _silent, variables=secrets.variables)
    elif latest is not None:
        controller.plane.restore(latest, _silent)
        fetched = source.again(
            controller.home.version(latest.id), latest.source, settings, folder, variables=secrets.variables
        )
    else:
        raise InvalidInput(f"render: there is no endpoint {name!r} with a version; name a model or project with -m.")
    now_ms = 0  # the same arguments give the same files
    endpoint = known or Endpoint(new_id(), name, controller.plane.name, now_ms)
    number = endpoint.next_number
    version = Version(
        new_id(), endpoint.id, number, now_ms, fetched, settings,
        status=Status.RUNNING, target=Target.RUNNING, replicas=settings.replicas,
        artifact=Artifact(image, "", "", "") if image else None,
    )  # fmt: skip
    endpoint = dataclasses.replace(
        endpoint,
        target=Target.RUNNING,
        next_number=number + 1,
        settings=settings,
        **routes_to(endpoint, version, settings),
    )
    model = source.folder_of(fetched, folder) if fetched.kind == "Registry" else None
    files = {
        "version.json": _version_document(version, secrets),
        "requirements.in": _requirements(model, settings, controller.plane.requirements(settings)),
        **controller.plane.render(_world(controller, endpoint, version), endpoint, version, secrets),
    }
    for file, content in files.items():
        write_text(folder / file, content, mode=0o644)
    contexts = _contexts(controller.plane, version, secrets, folder, log) if context else []
    return sorted([*files, *contexts])


def _contexts(plane: DataPlane, version: Version, secrets: Secrets, folder: Path, log: Log) -> list[str]:
    before = set(folder.rglob("*"))
    why = plane.render_context(version, secrets, folder, log)
    if why:
        log(f"note: no contexts of images are written: {why}")
    made = {path for path in folder.rglob("*") if path.is_file()} - before
    return [str(path.relative_to(folder)) for path in made if path.parent in (folder, folder / "dockerfiles")]


def _world(controller: Controller, endpoint: Endpoint, version: Version) -> World:
    others = [e for e in controller.records.endpoints() if e.data_plane == endpoint.data_plane and e.id != endpoint.id]
    ids = {e.id for e in (endpoint, *others)}
    versions = [v for v in controller.records.versions() if v.endpoint_id in ids]
    return World((*others, endpoint), (*versions, version))


def _version_document(version: Version, secrets: Secrets) -> str:
    document = {
        "number": version.number,
        "source": dataclasses.asdict(version.source),
        "settings": settings_to_json(version.settings),
        "variables": sorted(secrets.variables),
    }
    return json.dumps(document, indent=1) + "\n"


def _requirements(model: Path | None, settings: Settings, own_lines: tuple[str, ...]) -> str:
    """Return what would be resolved: the lines that are asked for, and where each comes from."""
    from mlflow_domino.interpreter import Interpreter
    from mlflow_domino.lock import Recipe
    from mlflow_domino.requirements import Requirements, listed, of_model, read_facts

    facts = read_facts(model) if model else None
    own = of_model(model) if model else Requirements()
    asked = dataclasses.replace(own, items=(*own.items, *listed(own_lines).items))
    ours = f"{sys.version_info[0]}.{sys.version_info[1]}"
    python = settings.python_version or (facts.python_version if facts else "") or ours
    recipe = Recipe.of(
        asked,
        facts,
        Interpreter(Path("python"), python, ""),
        indexes="",
        install_harness=settings.install_harness_packages,
    )
    lines = [f"{item.text}  # {item.where}" for item in recipe.whole().items]
    lines += [f"# constraint: {item.text}  # {item.where}" for item in asked.constraints]
    return "\n".join([f"# Python {python}", *lines]) + "\n"


def _silent(_line: str) -> None:
    pass
