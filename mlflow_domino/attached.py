"""Repositories that are attached to a project: fetched when a version is made, and copied into a folder of it."""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow_domino import git, tree
from mlflow_domino.errors import InvalidInput, NotFound
from mlflow_domino.models import Repository
from mlflow_domino.repositories import parted

__all__ = ["Attachments"]

_REFERENCE = re.compile(r"\$\{([A-Z0-9_]+)\}")


@dataclass(frozen=True)
class Attachments:
    """What the setting `git_repos` asks for.

    Attributes
    ----------
    items : sequence of str
        The setting.
    variables : mapping of str to str
        What ``${NAME}`` in a URL's user and password stands for, before this process's own variables.
    """

    items: Sequence[str] = ()
    variables: Mapping[str, str] | None = None

    def are(self, repositories: Sequence[Repository]) -> bool:
        """Whether these are the repositories that a version has, at whatever commits."""
        wanted = [(folder, str(git.parse_address(_REFERENCE.sub("x", url)))) for folder, url in map(parted, self.items)]
        return wanted == [(repository.folder, repository.uri) for repository in repositories]

    def add(
        self, project: Path, leaves_out: Callable[[str], bool], log: Callable[[str], None]
    ) -> tuple[Repository, ...]:
        """Fetch each repository, and copy its files to its folder below `project`.

        Nothing of them is run. What is there of their history stays out.

        Parameters
        ----------
        project : Path
            The copy of the project.
        leaves_out : callable
            As for `tree.copy`; paths are relative to the project.

        Raises
        ------
        DominoError
            Naming the repository, never a password.
        """
        return tuple(self._add(item, project, leaves_out, log) for item in self.items)

    def _add(
        self, item: str, project: Path, leaves_out: Callable[[str], bool], log: Callable[[str], None]
    ) -> Repository:
        folder, url = parted(item)
        address = git.parse_address(_REFERENCE.sub(self._value, url))
        final = project / folder
        if os.path.lexists(final):
            raise InvalidInput(
                f"git_repos: the project itself has {folder}; name another folder for {address}: FOLDER=URL."
            )
        clone = project.with_name("repository.partial")
        tree.remove(clone)
        try:
            log(f"fetching {address}")
            commit = git.fetch(address, clone)
            root = clone / address.subdirectory
            if not root.is_dir():
                raise NotFound(f"{address}: no folder {address.subdirectory!r} at commit {commit[:12]}.")
            tree.copy(root, final, leaves_out=lambda path: leaves_out(f"{folder}/{path}"))
        finally:
            tree.remove(clone)
        log(f"{folder} is commit {commit} of {address}")
        return Repository(folder, str(address), commit)

    def _value(self, match: re.Match[str]) -> str:
        value = (self.variables or {}).get(match[1], os.environ.get(match[1]))
        if value is None:
            raise InvalidInput(
                f"git_repos: ${{{match[1]}}} is not set; set it with -C env.{match[1]}=… or in the shell."
            )
        return urllib.parse.quote(value, safe="")
