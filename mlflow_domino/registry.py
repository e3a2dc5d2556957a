"""Models of MLflow's as the source of a version: resolved once, then copied.

The tracking and registry servers are those of the caller's environment, as everywhere in MLflow. Importing MLflow
takes seconds, so it is imported where it is needed.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mlflow_domino import tree
from mlflow_domino.errors import DominoError, InvalidInput, NotFound, Unavailable, Unsupported
from mlflow_domino.git import hide_credentials
from mlflow_domino.models import RegistrySource

__all__ = ["copy_directory", "download", "has_model"]

Log = Callable[[str], None]
_FORMS = "write models:/NAME/VERSION, models:/NAME@ALIAS, models:/NAME/latest or models:/m-ID."


def has_model(folder: Path) -> bool:
    return os.path.isfile(folder / "MLmodel")  # Path.is_file raises for names that are too long


def copy_directory(uri: str, folder: Path, partial: Path) -> RegistrySource:
    """Copy a model's directory to `partial`.

    Raises
    ------
    InvalidInput
        When it holds no model that can be served, or a file that cannot be copied.
    """
    tree.copy(folder, partial, leaves_out=lambda path: path.endswith(("__pycache__/", ".git/")))
    flavor = _flavor(partial, str(folder))
    return RegistrySource(uri, str(folder), tree.freeze(partial), flavor=flavor)


def download(uri: str, partial: Path, log: Log) -> RegistrySource:
    """Resolve ``models:/``, ``runs:/`` or another artifact's URI, and download the model to `partial`.

    Raises
    ------
    NotFound
        No such model, version, alias, stage, run or artifact, naming those that are there.
    Unavailable
        The server does not answer, or does not let us.
    """
    shown = hide_credentials(uri)
    scheme, _, rest = uri.partition(":")
    name = version = None
    resolved = shown
    if scheme == "models":
        name, version = _resolve(shown, rest)
        resolved = f"models:/{name}/{version}" if name else f"models:/{version}"
    elif scheme == "runs":
        resolved = _resolve_run(shown, rest)
    if resolved != shown:
        log(f"{shown} is {resolved}")
    _download(resolved if scheme in ("models", "runs") else uri, shown if scheme == "runs" else resolved, partial)
    flavor = _flavor(partial, resolved)
    return RegistrySource(shown, resolved, tree.freeze(partial), name, version if name else None, flavor)


def _download(uri: str, shown: str, partial: Path) -> None:
    import mlflow.artifacts

    landing = partial.with_name("download.partial")
    tree.remove(landing)
    try:
        with _mlflow_errors(f"the files of {shown} cannot be downloaded"):
            try:
                found = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(landing)))
            except TypeError as error:  # how MLflow 3.1 puts it that there is nothing to download
                raise NotFound(_no_artifact(shown)) from error
        if found.is_file():
            raise InvalidInput(f"{shown} is a file; name the folder of a model.")
        if not found.is_dir() or not any(found.iterdir()):
            raise NotFound(_no_artifact(shown))
        found.rename(partial)
    except NotFound as error:
        raise NotFound(_no_artifact(shown)) from error
    finally:
        tree.remove(landing)


def _flavor(folder: Path, shown: str) -> str:
    """Return the flavor that was logged, and refuse what cannot be served."""
    import yaml

    try:
        document = yaml.safe_load((folder / "MLmodel").read_text("utf-8"))
    except FileNotFoundError:
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
        raise NotFound(f"{shown} holds no MLmodel file, but {there}; name the folder that holds the model.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidInput(f"{shown}: its MLmodel file cannot be read: {error}; log the model again.") from error
    flavors = document.get("flavors") if isinstance(document, dict) else None
    if not isinstance(flavors, dict) or not flavors:
        raise InvalidInput(f"{shown}: its MLmodel file names no flavor; log the model again.")
    if "python_function" not in flavors:
        raise Unsupported(
            f"{shown} has only the flavor {', '.join(map(str, flavors))}; models with python_function can be served."
        )
    return next((str(flavor) for flavor in flavors if flavor != "python_function"), "python_function")


def _resolve(shown: str, rest: str) -> tuple[str | None, str]:
    """Return name and version, or None and the id of a logged model."""
    path = rest.strip("/")
    name, slash, suffix = path.partition("/")
    if not rest.startswith("/") or rest.startswith("//") or not name or "/" in suffix or (slash and not suffix):
        raise InvalidInput(f"{shown} is not the URI of a model: {_FORMS}")
    client = _client()
    if slash:
        return name, _version(client, name, suffix)
    if re.fullmatch(r"m-[0-9a-f]{8,64}", name):
        with _mlflow_errors(f"there is no logged model {name}"):
            model = client.get_logged_model(name)
        if _state(model) != "READY":
            raise Unavailable(f"the logged model {name} is {_state(model)}; log it again, or try later.")
        return None, name
    name, at, alias = name.rpartition("@")
    if not at or not name or not alias:
        raise InvalidInput(f"{shown} names no version: {_FORMS}")
    aliases = _aliases(client, name)
    if alias not in aliases:
        known = ", ".join(f"{known} (version {version})" for known, version in sorted(aliases.items())) or "none"
        raise NotFound(f"the model {name} has no alias {alias!r}; its aliases are: {known}.")
    return name, aliases[alias]


def _aliases(client: Any, name: str) -> dict[str, str]:
    model = _registered_model(client, name)
    return {str(alias): str(version) for alias, version in dict(model.aliases).items()}


def _registered_model(client: Any, name: str) -> Any:
    try:
        with _mlflow_errors(f"the registered model {name!r} cannot be read"):
            return client.get_registered_model(name)
    except NotFound:
        names: list[str] = []
        with contextlib.suppress(DominoError), _mlflow_errors(""):
            names = [str(model.name) for model in client.search_registered_models(max_results=200)]
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        there = ", ".join(sorted(names)[:10]) or "none"
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {there}."
        raise NotFound(f"there is no registered model {name!r} in {_registry()}: {hint}") from None


def _version(client: Any, name: str, suffix: str) -> str:
    """Return the number that a version, a stage or the word latest means."""
    _registered_model(client, name)
    escaped = name.replace("'", "\\'")
    with _mlflow_errors(f"the versions of {name} cannot be read"):
        if re.fullmatch(r"[0-9]{1,9}", suffix):
            with contextlib.suppress(NotFound), _mlflow_errors(f"version {suffix} of {name} cannot be read"):
                return _ready(client.get_model_version(name, str(int(suffix))))
        versions = sorted(_pages(client, f"name='{escaped}'"), key=lambda version: int(version.version))
    numbers = ", ".join(str(version.version) for version in versions[-10:]) or "none"
    if suffix.isdigit():
        raise NotFound(f"the model {name} has no version {suffix}; its versions are: {numbers}.")
    latest = suffix.lower() == "latest"
    fitting = [v for v in versions if latest or str(v.current_stage).lower() == suffix.lower()]
    if not fitting:
        raise NotFound(
            f"the model {name} has no version yet."
            if latest
            else f"the model {name} has no version in stage {suffix!r}; its versions are: {numbers}."
        )
    return _ready(fitting[-1])


def _pages(client: Any, query: str) -> list[Any]:
    found: list[Any] = []
    token = None
    while True:
        page = client.search_model_versions(query, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _ready(version: Any) -> str:
    if _state(version) != "READY":
        raise Unavailable(f"version {version.version} of the model {version.name} is {_state(version)}; try later.")
    return str(version.version)


def _state(thing: Any) -> str:
    """Return the status of a model or a version, an enum in some releases of MLflow and text in others."""
    return str(getattr(thing.status, "value", thing.status))


def _resolve_run(shown: str, rest: str) -> str:
    """Return the URI of the model that the run logged under the name, or of the run's own artifact.

    MLflow would download both into one folder, and pass over what fails.
    """
    run_id, _, artifact = rest.strip("/").partition("/")
    if not rest.startswith("/") or not run_id:
        raise InvalidInput(f"{shown} is not the URI of a run's model: write runs:/RUN_ID/NAME.")
    client = _client()
    try:
        with _mlflow_errors(f"the run {run_id} cannot be read"):
            run = client.get_run(run_id)
    except NotFound:
        raise NotFound(f"there is no run {run_id} in {_registry(tracking=True)}.") from None
    if not artifact:
        raise InvalidInput(f"{shown} names no model in the run: write runs:/{run_id}/NAME. {_in_run(run_id)}")
    if re.fullmatch(r"[^/:.%\"']+", artifact):  # what MLflow allows in the name of a logged model
        with _mlflow_errors(f"the models of the run {run_id} cannot be read"):
            models = client.search_logged_models([run.info.experiment_id], filter_string=f"name = '{artifact}'")
        ready = [m for m in models if m.source_run_id == run_id and _state(m) == "READY"]
        if ready:
            return f"models:/{max(ready, key=lambda model: int(model.creation_timestamp)).model_id}"
    return f"runs:/{run_id}/{artifact}"


def _no_artifact(shown: str) -> str:
    if not shown.startswith("runs:"):
        return f"{shown}: its files are not in the artifact store."
    run_id, _, artifact = shown.partition(":")[2].strip("/").partition("/")
    return f"the run {run_id} has no artifact {artifact!r}. {_in_run(run_id)}"


def _in_run(run_id: str) -> str:
    names: set[str] = set()
    with contextlib.suppress(DominoError), _mlflow_errors(""):
        client = _client()
        names |= {str(item.path) for item in client.list_artifacts(run_id)}
        experiment_id = client.get_run(run_id).info.experiment_id
        names |= {str(m.name) for m in client.search_logged_models([experiment_id]) if m.source_run_id == run_id}
    return f"It has: {', '.join(sorted(names)[:10]) or 'nothing'}."


def _client() -> Any:
    import mlflow

    return mlflow.MlflowClient()


def _registry(*, tracking: bool = False) -> str:
    import mlflow

    return hide_credentials(str(mlflow.get_tracking_uri() if tracking else mlflow.get_registry_uri()))


@contextlib.contextmanager
def _mlflow_errors(fact: str) -> Iterator[None]:
    """Turn what MLflow, its stores and its transports raise into errors of ours."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except DominoError:
        raise
    except MlflowException as error:
        text = hide_credentials(str(error.message)).strip().rstrip(".")
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"):
            raise NotFound(f"{fact}: {text}.") from error
        raise Unavailable(f"{fact} ({_registry()}): {text}.") from error
    except Exception as error:  # each artifact store brings exceptions of its own, with no common base
        text = hide_credentials(str(error)).strip().rstrip(".") or type(error).__name__
        raise Unavailable(f"{fact} ({_registry()}): {type(error).__name__}: {text}.") from error
