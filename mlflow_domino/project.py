"""Project code as the source of a version: a directory, or a Git repository."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mlflow_domino import git, script, tree
from mlflow_domino.attached import Attachments
from mlflow_domino.config import Settings
from mlflow_domino.errors import Failed, InvalidInput, NotFound, Unsupported
from mlflow_domino.ignore import Ignore
from mlflow_domino.models import FileSource

__all__ = ["copy_again", "copy_directory", "copy_repository"]

Log = Callable[[str], None]
_NOTHING = Attachments()
_LFS = b"version https://git-lfs.github.com/spec/"


def copy_directory(
    project: Path, settings: Settings, partial: Path, log: Log, attachments: Attachments = _NOTHING
) -> FileSource:
    """Copy a directory to `partial`, without what is ignored, and check the script in it.

    In a Git work tree, files that Git does not track are part of the version, and said; files that Git ignores are
    not, and said too, unless a ``!`` pattern of `.modelignore` or `exclude_files` takes them in.
    """
    _require_file_setting(project, settings)
    work_tree = None
    if _in_work_tree(project):
        try:
            work_tree = git.inspect(project)
        except (Failed, Unsupported) as error:
            log(str(error))
            log("the version is recorded without a commit, and files that Git ignores are copied")
    choice = _Choice(project, Ignore.read(project, settings.exclude_files), work_tree)
    copied = tree.copy(project, partial, leaves_out=choice.leaves_out)
    repositories = attachments.add(partial, choice.leaves_out_of_a_copy, log)
    _check(partial, project, settings, choice, copied, log)
    commit = None
    dirty: tuple[str, ...] = ()
    if work_tree is not None:
        commit = work_tree.commit
        dirty = tuple(path for path in work_tree.dirty if choice.decides_for(path)) if commit else ()
        _tell(log, work_tree, dirty, choice)
    digest = tree.freeze(partial)
    return FileSource(str(project), settings.file, settings.function, digest, commit, dirty, repositories)


def copy_repository(
    address: git.Address, settings: Settings, partial: Path, log: Log, attachments: Attachments = _NOTHING
) -> FileSource:
    """Fetch what `address` names, copy its files to `partial`, and check the script in it."""
    _require_file_setting(address, settings)
    clone = partial.with_name("clone.partial")
    tree.remove(clone)
    log(f"fetching {address}")
    try:
        commit = git.fetch(address, clone)
        project = clone / address.subdirectory
        if not project.is_dir():
            siblings = (path for path in project.parent.iterdir() if path.is_dir())
            folders = sorted(path.name for path in siblings if path.name != ".git")
            raise NotFound(
                f"{address}: no folder {address.subdirectory!r} at commit {commit[:12]}; "
                f"beside it are: {', '.join(folders[:10]) or 'none'}."
            )
        choice = _Choice(project, Ignore.read(project, settings.exclude_files), None)
        copied = tree.copy(project, partial, leaves_out=choice.leaves_out)
        repositories = attachments.add(partial, choice.leaves_out_of_a_copy, log)
        _check(partial, address, settings, choice, copied, log)
    finally:
        tree.remove(clone)
    log(f"fetched commit {commit}")
    digest = tree.freeze(partial)
    return FileSource(str(address), settings.file, settings.function, digest, commit, repositories=repositories)


def copy_again(
    source: FileSource, folder: Path, settings: Settings, partial: Path, log: Log, attachments: Attachments = _NOTHING
) -> FileSource:
    """Copy what an earlier version holds to `partial`; script, function and `exclude_files` may be others now.

    Attached repositories stay at their commits, unless others are asked for: then all are fetched.
    """
    _require_file_setting(source.uri, settings)
    choice = _Choice(folder, Ignore.read(folder, settings.exclude_files), None)
    kept = attachments.are(source.repositories)
    gone = () if kept else tuple(f"{repository.folder}/" for repository in source.repositories)
    copied = tree.copy(folder, partial, leaves_out=lambda path: path in gone or choice.leaves_out(path))
    repositories = source.repositories if kept else attachments.add(partial, choice.leaves_out_of_a_copy, log)
    _check(partial, source.uri, settings, choice, copied, log)
    dirty = tuple(path for path in source.dirty if choice.decides_for(path))
    return replace(
        source, file=settings.file, function=settings.function, digest=tree.freeze(partial), dirty=dirty,
        repositories=repositories,
    )  # fmt: skip


def _require_file_setting(project: object, settings: Settings) -> None:
    if not settings.file:
        raise InvalidInput(
            f"{project} holds no MLmodel file, so it is project code: say which script and function answer requests, "
            "-C file=model.py -C function=predict."
        )


def _in_work_tree(project: Path) -> bool:
    return any((folder / ".git").exists() for folder in (project, *project.resolve().parents))


class _Choice:
    """Decides about each path of a project, and remembers what Git left out."""

    def __init__(self, project: Path, ignore: Ignore, work_tree: git.WorkTree | None) -> None:
        self._project = project
        self._ignore = ignore
        self._git_ignored = set(work_tree.ignored) if work_tree else set()
        self._in_git = work_tree is not None
        self.left_out_by_git: list[str] = []

    def leaves_out(self, path: str) -> bool:
        name = path.rstrip("/").rpartition("/")[2]
        if name in (".git", "__pycache__"):
            return True
        decision = self._ignore.decide(path)
        if path.endswith("/") and self._ignore.takes_back:
            self._look_into(path)
            return False  # what is in it is decided one by one
        if decision is not None:
            return decision
        if self._by_git(path):
            self.left_out_by_git.append(path)
            return True
        self._look_into(path)
        return False

    def leaves_out_of_a_copy(self, path: str) -> bool:
        """As `leaves_out`, for what comes from elsewhere: what Git ignores in the project does not matter there."""
        name = path.rstrip("/").rpartition("/")[2]
        if name in (".git", "__pycache__"):
            return True
        return not (path.endswith("/") and self._ignore.takes_back) and self._ignore.decide(path) is True

    def decides_for(self, path: str) -> bool:
        """Whether a path that Git names belongs to the version (or did, before it was deleted)."""
        decision = self._ignore.decide(path)
        return decision is not True and not any(part in (".git", "__pycache__") for part in path.split("/"))

    def reason(self, path: str) -> str:
        """Return what leaves a path out, for a message."""
        parts = path.split("/")
        for prefix in [*("/".join(parts[:end]) + "/" for end in range(1, len(parts))), path]:
            if self._ignore.decide(prefix):
                return self._ignore.reason(prefix)
            if self._by_git(prefix):
                return f".gitignore (take it in with a line !{path} in .modelignore)"
        return ""

    def _by_git(self, path: str) -> bool:
        parts = path.rstrip("/").split("/")
        folders = ("/".join(parts[:end]) + "/" for end in range(1, len(parts) + 1))
        return path in self._git_ignored or any(folder in self._git_ignored for folder in folders)

    def _look_into(self, path: str) -> None:
        """Ask a submodule, or a repository in the repository, what it ignores."""
        if self._in_git and path.endswith("/") and (self._project / path / ".git").exists():
            inner = git.inspect(self._project / path)
            self._git_ignored |= {path + ignored for ignored in inner.ignored} if inner else set()


def _check(copy: Path, project: object, settings: Settings, choice: _Choice, copied: list[str], log: Log) -> None:
    name = settings.file
    if not (copy / name).is_file():
        if reason := choice.reason(name):
            raise NotFound(f"{name} is left out of the project by {reason}.")
        if (copy / name).is_dir():
            raise InvalidInput(f"{project}: {name} is a folder; -C file= names the script in it.")
        scripts = [path for path in copied if path.endswith(".py")]
        near = difflib.get_close_matches(name, scripts, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"its scripts are: {', '.join(scripts[:10]) or 'none'}."
        raise NotFound(f"{project} has no file {name!r}: {hint}")
    if not name.endswith(".py"):
        raise Unsupported(f"{name}: only Python scripts (.py) can be served.")
    for path in copied:
        if _is_lfs_pointer(copy / path):
            log(f"{path} is a pointer of Git LFS, not the file itself; install git-lfs and run `git lfs pull`")
    script.check(copy / name, name, settings.function, python_version=settings.python_version, log=log)


def _is_lfs_pointer(path: Path) -> bool:
    if path.is_dir() or path.stat().st_size > 1024:
        return False
    with path.open("rb") as file:
        return file.read(len(_LFS)) == _LFS


def _tell(log: Log, work_tree: git.WorkTree, dirty: tuple[str, ...], choice: _Choice) -> None:
    if work_tree.commit is None:
        log("the Git repository has no commit yet; the version holds the files as they are")
    elif dirty:
        log(f"the version holds files that are not in commit {work_tree.commit[:12]} as they are: {_some(dirty)}")
    else:
        log(f"the version holds commit {work_tree.commit[:12]}, unchanged")
    if choice.left_out_by_git:
        log(
            f"left out, because Git ignores it: {_some(tuple(choice.left_out_by_git))} (!NAME in .modelignore takes in)"
        )


def _some(paths: tuple[str, ...]) -> str:
    shown = ", ".join(paths[:8])
    return shown if len(paths) <= 8 else f"{shown} and {len(paths) - 8} more"
