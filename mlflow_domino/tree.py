"""Folders of a version: copied from what others may change, then read-only and known by a digest.

Files become 0444, or 0555 where their owner could run them. Folders stay 0755: whoever removes a version needs no
preparation, and Python may keep its bytecode beside a module. Times are all the same, so that equal content is equal.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mlflow_domino.errors import Failed, InvalidInput

__all__ = ["copy", "freeze", "remove", "replace", "storage_errors"]

#: 1980-01-01, the first time that a zip archive can hold.
_TIME = 315532800
_WAY_OUT = "leave it out with .modelignore or -C exclude_files="


@contextlib.contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turn what the file system says into an error that names the file."""
    try:
        yield
    except BrokenPipeError:  # not storage: whoever reads our progress is gone
        raise
    except OSError as error:
        path = error.filename2 or error.filename
        named = f"{os.fsdecode(path) if isinstance(path, bytes) else path}: " if path else ""
        raise Failed(f"{what}: {named}{error.strerror or error}.") from error


def copy(root: Path, into: Path, *, leaves_out: Callable[[str], bool]) -> list[str]:
    """Copy a folder to `into`, which must not exist.

    Links to files become files, links to folders stay links, as long as both ends lie in the folder.

    Parameters
    ----------
    root : Path
        The folder.
    into : Path
        Made here.
    leaves_out : callable
        Called with each path relative to `root`, a folder's with a slash at its end; True leaves it out.

    Returns
    -------
    list of str
        Files and links that were copied, sorted.

    Raises
    ------
    InvalidInput
        Naming what cannot be copied: a link that leaves the folder, a special file, a file that cannot be read, a
        folder that holds the copy itself.
    """
    into.mkdir(parents=True)
    run = _Copy(root, root.resolve(), into, leaves_out)
    _copy_folder(run, "")
    for relative in run.links:
        if not (into / relative).exists():
            raise InvalidInput(
                f"{root / relative} is a link to {os.readlink(root / relative)}, which is left out; {_WAY_OUT} too."
            )
    return sorted(run.copied)


@dataclass(frozen=True)
class _Copy:
    """One run of `copy`."""

    root: Path
    real_root: Path
    into: Path
    leaves_out: Callable[[str], bool]
    copied: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)


def _copy_folder(run: _Copy, relative: str) -> None:
    for entry in sorted(_scan(run.root / relative), key=lambda e: e.name):
        path = relative + entry.name
        if entry.is_dir(follow_symlinks=False):
            if not run.leaves_out(path + "/"):
                _refuse_itself(run, path)
                (run.into / path).mkdir(parents=True, exist_ok=True)
                _copy_folder(run, path + "/")
        elif entry.is_symlink():
            _copy_link(run, path)
        elif not run.leaves_out(path):
            if not entry.is_file(follow_symlinks=False):
                raise InvalidInput(f"{run.root / path} is {_kind(run.root / path)}, not a file; {_WAY_OUT}.")
            _copy_file(run, run.root / path, path)


def _refuse_itself(run: _Copy, relative: str) -> None:
    if run.into.resolve().is_relative_to(run.real_root / relative):
        raise InvalidInput(
            f"{run.root / relative} is in the folder that is copied, and holds the copy; choose a place outside of it, or "
            f"{_WAY_OUT}."
        )


def _copy_link(run: _Copy, relative: str) -> None:
    link = run.root / relative
    folder = link.is_dir()
    if run.leaves_out(relative + "/" if folder else relative):
        return
    try:
        target = link.resolve()
    except (OSError, RuntimeError) as error:  # a loop: RuntimeError before Python 3.13
        raise InvalidInput(f"{link} is a link that leads back to itself; {_WAY_OUT}.") from error
    if not target.is_relative_to(run.real_root):
        raise InvalidInput(
            f"{link} is a link that leaves {run.root} (to {os.readlink(link)}); copy what it points to, or {_WAY_OUT}."
        )
    if folder:
        beside = os.path.relpath(target, run.real_root / Path(relative).parent)
        (run.into / relative).symlink_to(beside)
        run.links.append(relative)
        run.copied.append(relative)
    elif target.is_file():
        _copy_file(run, target, relative)
    elif target.exists():
        raise InvalidInput(f"{link} is a link to {_kind(target)}, not a file; {_WAY_OUT}.")
    # A link to nothing, such as an editor's lock, has nothing to copy.


def _copy_file(run: _Copy, source: Path, relative: str) -> None:
    try:
        shutil.copyfile(source, run.into / relative)
        executable = source.stat().st_mode & stat.S_IXUSR
    except (FileNotFoundError, PermissionError) as error:
        if error.filename is None or Path(error.filename) != source:
            raise
        raise InvalidInput(f"{source} cannot be read: {error.strerror}; mend that, or {_WAY_OUT}.") from error
    (run.into / relative).chmod(0o555 if executable else 0o444)
    run.copied.append(relative)


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise InvalidInput(f"{folder} cannot be read: {error.strerror}; mend that, or {_WAY_OUT}.") from error


def _kind(path: Path) -> str:
    mode = path.lstat().st_mode
    if stat.S_ISFIFO(mode):
        return "a named pipe"
    if stat.S_ISSOCK(mode):
        return "a socket"
    return "a device"


def freeze(root: Path) -> str:
    """Make a folder read-only, as the module says, and return the SHA-256 of its names, contents and modes."""
    digest = hashlib.sha256()
    for path in _everything(root):
        relative = os.fsencode(path.relative_to(root))
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            content = os.fsencode(os.readlink(path))
            kind = b"link"
        elif stat.S_ISDIR(mode):
            path.chmod(0o755)
            content, kind = b"", b"folder"
        else:
            executable = bool(mode & stat.S_IXUSR)
            path.chmod(0o555 if executable else 0o444)
            content, kind = _file_digest(path), b"program" if executable else b"file"
        os.utime(path, (_TIME, _TIME), follow_symlinks=False)
        digest.update(b"%b %d %b %d " % (kind, len(relative), relative, len(content)) + content)
    root.chmod(0o755)
    os.utime(root, (_TIME, _TIME))
    return digest.hexdigest()


def _everything(root: Path) -> list[Path]:
    found: list[Path] = []
    for folder, folders, files in os.walk(root):
        found += [Path(folder) / name for name in (*folders, *files)]
    return sorted(found, key=lambda path: os.fsencode(path))


def _file_digest(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()


def replace(new: Path, final: Path) -> None:
    """Put a finished folder where it belongs; what a killed run left there goes."""
    remove(final)
    new.rename(final)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, read-only or not; nothing there is as good."""
    if path.is_dir() and not path.is_symlink():
        for folder, _, _ in os.walk(path):
            with contextlib.suppress(OSError):  # what cannot be changed is named by rmtree
                os.chmod(folder, 0o700)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
