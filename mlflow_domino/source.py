"""Where a version's code comes from: resolved once, and copied, so that nothing that happens to it later matters.

Two kinds, with Domino's names: *Registry*, a model of MLflow's (`mlflow_domino.registry`), and *File*, project code
(`mlflow_domino.project`). A copy is read-only and made the same way every time (`mlflow_domino.tree`).
"""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlflow_domino import git, project, registry, tree
from mlflow_domino.attached import Attachments
from mlflow_domino.config import Settings
from mlflow_domino.errors import InvalidInput, NotFound
from mlflow_domino.joining import check_joining
from mlflow_domino.models import FileSource, RegistrySource, Source
from mlflow_domino.tree import remove

__all__ = ["again", "fetch", "folder_of", "is_registry_uri", "remove", "shown"]


def is_registry_uri(uri: str) -> bool:
    """Whether a URI names a model of MLflow's, and not project code; of directories, whether one holds a model."""
    scheme = _scheme(uri)
    if scheme in ("", "file"):
        path = _local_path(uri)
        return path is not None and registry.has_model(path)
    return not _is_git(uri)


def shown(uri: str) -> str:
    """Return a URI as it may be printed and kept: without user and password."""
    return git.hide_credentials(str(uri))


def folder_of(source: Source, destination: Path) -> Path:
    """Return where `fetch` puts a source below `destination`."""
    return destination / ("model" if source.kind == "Registry" else "source")


def fetch(
    model_uri: str,
    settings: Settings,
    destination: Path,
    log: Callable[[str], None],
    *,
    variables: Mapping[str, str] | None = None,
) -> Source:
    """Resolve a URI once, and copy what it means to ``destination/model`` or ``destination/source``.

    What a fetch that was killed left in `destination` is replaced.

    Parameters
    ----------
    model_uri : str
        ``models:/…``, ``runs:/…``, another artifact's URI, a directory (with an MLmodel file, or a project), a
        ``file://`` URL of one, or a Git repository: ``git+https://``, ``git+ssh://``, ``git+file://``, or ``file://``
        of a bare repository or with ``@ref``. `file` and `function` of the settings count for project code only.
    settings : Settings
        Of the version.
    destination : Path
        Folder of the version.
    log : callable
        Told, a line at a time, what a person should know.
    variables : mapping of str to str or None
        What ``${NAME}`` in a URL of `git_repos` stands for.

    Returns
    -------
    Source
        What it was, then. Its `flavor` is the model's, such as ``sklearn``; ``file`` for project code.

    Raises
    ------
    DominoError
        Naming the thing, and the way out. Nothing is left at the final place then.
    """
    uri = str(model_uri).strip()
    if not uri or "\0" in uri:
        raise InvalidInput(
            "a model's URI or a project's directory is wanted, such as -m models:/iris/1 or -m ./project."
        )
    attachments = Attachments(settings.git_repos, variables)
    return _into(destination, shown(uri), settings, lambda partial: _fetch(uri, settings, partial, log, attachments))


def again(
    earlier: Path,
    source: Source,
    settings: Settings,
    destination: Path,
    log: Callable[[str], None] = lambda _: None,
    *,
    variables: Mapping[str, str] | None = None,
) -> Source:
    """Copy what an earlier version holds, for a version that differs in its settings only.

    Parameters
    ----------
    earlier : Path
        Folder of the earlier version.
    source : Source
        What it holds.
    settings : Settings
        Of the new version.
    destination : Path
        Folder of the new version.
    log, variables
        As for `fetch`.
    """
    folder = folder_of(source, earlier)
    if not folder.is_dir():
        raise NotFound(f"{folder} is gone; name the model or project again, with -m.")

    def copy(partial: Path) -> Source:
        if isinstance(source, FileSource):
            return project.copy_again(
                source, folder, settings, partial, log, Attachments(settings.git_repos, variables)
            )
        _refuse_attachments(source.uri, settings)
        return replace(registry.copy_directory(source.uri, folder, partial), **_identity(source))

    return _into(destination, source.uri, settings, copy)


def _identity(source: RegistrySource) -> dict[str, Any]:
    return {"resolved_uri": source.resolved_uri, "name": source.name, "version": source.version}


def _into(destination: Path, what: str, settings: Settings, copy: Callable[[Path], Source]) -> Source:
    """Let `copy` fill a folder beside the final place, and put it there when that is done."""
    with tree.storage_errors(f"{what} cannot be copied"):
        destination.mkdir(parents=True, exist_ok=True)
        for left in (*destination.glob("*.partial"), *destination.glob(".credential.*")):
            tree.remove(left)
        for name in ("model", "source"):
            tree.remove(destination / name)
        partial = destination / "copy.partial"
        try:
            source = copy(partial)
            check_joining(source, partial, settings)
            tree.replace(partial, folder_of(source, destination))
        finally:
            tree.remove(partial)
    return source


def _refuse_attachments(uri: str, settings: Settings) -> None:
    if settings.git_repos:
        raise InvalidInput(
            f"{shown(uri)} is a model, and git_repos belong to project code: log the model with code_paths=, or take the "
            "setting back with -C git_repos=."
        )


def _fetch(uri: str, settings: Settings, partial: Path, log: Callable[[str], None], attachments: Attachments) -> Source:
    if _is_git(uri):
        return project.copy_repository(git.parse_address(uri), settings, partial, log, attachments)
    if _scheme(uri) not in ("", "file"):
        if re.match(r"https?:", uri):
            raise InvalidInput(
                f"{shown(uri)}: a Git repository is written git+{shown(uri)}; a model, models:/NAME/VERSION."
            )
        _refuse_attachments(uri, settings)
        return registry.download(uri, partial, log)
    path = _local_path(uri)
    if path is None or not os.path.isdir(path):  # Path.is_dir raises for names that are too long
        raise NotFound(_missing(uri, path))
    if registry.has_model(path):
        _refuse_attachments(uri, settings)
        return registry.copy_directory(uri, path, partial)
    return project.copy_directory(path, settings, partial, log, attachments)


def _missing(uri: str, path: Path | None) -> str:
    if path is None:
        return f"{uri}: a file:// URL names no server, as in file:///home/me/project."
    if path.name == "MLmodel" and path.is_file():
        return f"{path} is the description of a model; name its folder, {path.parent}."
    if os.path.exists(path):
        return f"{path} is a file; name the folder, and the script with -C file={path.name}."
    hint = f"; a registered model is written models:/{uri}" if re.fullmatch(r"[\w -]+([/@][\w-]+)", uri) else ""
    named = str(path) if len(str(path)) <= 300 else str(path)[:300] + "…"
    return f"there is no directory {named}{hint}."


def _scheme(uri: str) -> str:
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", uri)  # two letters at least
    return match[1].lower() if match and not os.path.exists(uri) else ""


def _is_git(uri: str) -> bool:
    """Whether a URI names a repository that is fetched: git+…, or file:// of a bare one or with a ref.

    A work tree without a ref is a directory as any other: what is not committed in it would else be left out.
    """
    scheme = _scheme(uri)
    if scheme.startswith("git+") or scheme in ("git", "ssh"):
        return True
    if scheme != "file":
        return re.match(r"[\w.-]+@[\w.-]+:(?!/)", uri) is not None and not os.path.exists(uri)
    path = _local_path(uri.partition("#")[0])
    if path is None:
        return False
    if os.path.isdir(path):
        return git.is_repository(path) and not (path / ".git").exists()
    before, at, _ = str(path).rpartition("@")
    return bool(at) and git.is_repository(Path(before))


def _local_path(uri: str) -> Path | None:
    """Return the absolute path that a path or a file:// URL means, None for a URL of another machine."""
    if _scheme(uri) != "file":
        return Path(uri).expanduser().absolute()
    parts = urllib.parse.urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        return None
    path = Path(urllib.parse.unquote(parts.path)).absolute()
    return path / git.parse_subdirectory(uri, parts.fragment)
