"""Git repositories as sources: their URLs, what is fetched from them, and what a work tree says about its files.

The `git` program does the work, with the user's own configuration, agents and credential helpers. A password in a URL
is taken out of it at once, and reaches `git` through a file of mode 0600 that is used for that server only.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlflow_domino.errors import Failed, InvalidInput, NotFound, Unsupported

__all__ = ["Address", "WorkTree", "fetch", "hide_credentials", "inspect", "is_repository", "parse_address",
           "parse_subdirectory"]  # fmt: skip

_SCHEMES = ("https", "http", "ssh", "file")
#: No option (-), no refspec (: + *), nothing that git check-ref-format refuses or that a terminal could misread.
_REF = re.compile(r"[^-+\s\x00-\x1f\x7f:*?\[\\][^\s\x00-\x1f\x7f:*?\[\\]{0,249}")
#: Variables that would make Git look at another repository than the one in question.
_MISLEADING = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR", "GIT_NAMESPACE",
               "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_PREFIX", "GIT_LITERAL_PATHSPECS")  # fmt: skip


def hide_credentials(text: str) -> str:
    """Return text with user and password taken out of the URLs in it; the user of ssh is no secret."""
    without = re.sub(r"(?<=://)[^\s/?#@]*:[^\s/?#]*@", "", text)
    return re.sub(r"(?<=\bhttp://)[^\s/?#@]+@|(?<=\bhttps://)[^\s/?#@]+@", "", without)


@dataclass(frozen=True)
class Address:
    """A repository, and what is wanted from it.

    Attributes
    ----------
    url : str
        For `git`, without credentials.
    ref : str
        Branch, tag or commit; empty for the default branch.
    subdirectory : str
        Folder of the project in the repository; empty for its root.
    user, password : str
        As the caller's URL had them.
    """

    url: str
    ref: str = ""
    subdirectory: str = ""
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    def __str__(self) -> str:
        """Return what may be shown and kept: the caller's URL without credentials."""
        ref = f"@{self.ref}" if self.ref else ""
        fragment = f"#subdirectory={urllib.parse.quote(self.subdirectory)}" if self.subdirectory else ""
        return f"git+{self.url}{ref}{fragment}"


def parse_address(uri: str) -> Address:
    """Read ``git+https://server/path.git@ref#subdirectory=folder``, also with http, ssh and file.

    Raises
    ------
    InvalidInput
        Without repeating what may be a secret.
    """
    shown = hide_credentials(uri)
    try:
        parts = urllib.parse.urlsplit(uri.removeprefix("git+"))
        host, port = parts.hostname or "", parts.port
    except ValueError:  # its text may hold a part of a password
        raise InvalidInput(
            f"{re.sub('://.*@', '://', uri, flags=re.DOTALL)} is not a Git URL: server or port cannot be read; "
            "a user or password with one of :/@# in it is percent-encoded."
        ) from None
    _refuse(uri, shown, parts)
    path, ref = _split_ref(parts.scheme, parts.path)
    if ref and not _REF.fullmatch(ref):
        raise InvalidInput(f"{shown}: {ref!r} is not the name of a branch, a tag or a commit.")
    user, password = (urllib.parse.unquote(part or "") for part in (parts.username, parts.password))
    if re.search(r"[\x00-\x1f]", user + password):
        raise InvalidInput(f"{shown}: user and password hold characters that Git cannot pass on.")
    server = "" if parts.scheme == "file" else f"[{host}]" if ":" in host else host
    server += f":{port}" if port else ""
    if parts.scheme == "ssh":
        server, user = (f"{parts.username}@{server}" if user else server), ""
    return Address(f"{parts.scheme}://{server}{path}", ref, parse_subdirectory(shown, parts.fragment), user, password)


def _refuse(uri: str, shown: str, parts: urllib.parse.SplitResult) -> None:
    if parts.scheme not in _SCHEMES:
        raise InvalidInput(
            f"{shown} is not a Git URL that can be used: write git+https://, git+http://, git+ssh:// or git+file://."
        )
    if parts.query:
        raise InvalidInput(f"{shown.partition('?')[0]}: a Git URL has no part that begins with '?'; leave that out.")
    if re.search(r"[\s\x00-\x1f\x7f]", uri):
        raise InvalidInput(f"{shown!r}: blanks in a Git URL are written as %20.")
    host = parts.hostname or ""
    if parts.scheme == "file" and host not in ("", "localhost"):
        raise InvalidInput(f"{shown}: a file:// URL names no server, as in git+file:///srv/project.git.")
    if parts.scheme != "file" and not re.fullmatch(r"\w[\w.:-]*", host):
        raise InvalidInput(f"{shown} names no server.")
    if parts.scheme == "ssh" and parts.password:
        raise InvalidInput(f"{shown}: ssh takes no password from a URL; use a key, or git+https://.")


def _split_ref(scheme: str, path: str) -> tuple[str, str]:
    if scheme == "file" and os.path.exists(urllib.parse.unquote(path)):
        return path, ""
    before, at, ref = path.rpartition("@")
    return (before, urllib.parse.unquote(ref)) if at else (path, "")


def parse_subdirectory(shown: str, fragment: str) -> str:
    """Return the folder in a URL's part after ``#``, empty for none."""
    if not fragment:
        return ""
    key, _, value = fragment.partition("=")
    folder = urllib.parse.unquote(value).strip("/")
    if key != "subdirectory" or not folder or ".." in folder.split("/") or "\0" in folder:
        raise InvalidInput(f"{shown}: after '#' stands subdirectory= and a folder of the repository, nothing else.")
    return folder


def is_repository(path: Path) -> bool:
    """Whether `path` is a bare repository, or the root of a work tree."""
    return (path / ".git").exists() or ((path / "HEAD").is_file() and (path / "objects").is_dir())


def fetch(address: Address, into: Path) -> str:
    """Check out what `address` names in the folder `into`, which must not exist, and return its commit.

    Raises
    ------
    NotFound
        No such ref, naming those that are there.
    Failed
        What Git said, without credentials.
    Unsupported
        There is no `git` on this machine.
    """
    into.mkdir(parents=True)
    with _credentials(address, into.parent) as options:
        run = _Git(into, (*options, "-c", "core.hooksPath=/dev/null", "-c", "advice.detachedHead=false"))
        try:
            run("init", "--quiet")
            run("remote", "add", "origin", address.url)
            commit = _fetch_commit(run, address)
            run("checkout", "--quiet", "--detach", commit)
            if (into / ".gitmodules").is_file():
                local = ("-c", "protocol.file.allow=always") if address.url.startswith("file:") else ()
                run(*local, "submodule", "--quiet", "update", "--init", "--recursive")
        except _GitError as error:
            raise Failed(f"{address} cannot be fetched. Git says: {error}") from None
    return commit


def _fetch_commit(run: _Git, address: Address) -> str:
    """Fetch one commit where the server lets us, everything where it does not."""
    with contextlib.suppress(_GitError):
        run("fetch", "--quiet", "--depth", "1", "--no-tags", "origin", address.ref or "HEAD")
        return run("rev-parse", "--verify", "FETCH_HEAD^{commit}").strip()
    run("fetch", "--quiet", "--tags", "origin", "+refs/heads/*:refs/remotes/origin/*")
    if not address.ref:
        with contextlib.suppress(_GitError):  # whole, from a server that knows no depth
            run("fetch", "--quiet", "origin", "HEAD")
            return run("rev-parse", "--verify", "FETCH_HEAD^{commit}").strip()
    for name in (f"refs/remotes/origin/{address.ref}", address.ref):
        with contextlib.suppress(_GitError):
            return run("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}").strip()
    refs = run("for-each-ref", "--format=%(refname:strip=2)", "refs/tags", "refs/remotes").split()
    names = [ref.removeprefix("origin/") for ref in refs if ref != "origin/HEAD"]
    known = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    if not names:
        raise NotFound(f"{address}: the repository is empty; commit and push first.")
    raise NotFound(f"{address}: no branch, tag or commit {address.ref or 'HEAD'!r}. There are: {known}.")


@contextlib.contextmanager
def _credentials(address: Address, folder: Path) -> Iterator[tuple[str, ...]]:
    """Yield the options that let `git` find user and password, for the address's server only."""
    if not address.user and not address.password:
        yield ()
        return
    server = "/".join(address.url.split("/")[:3])
    with tempfile.NamedTemporaryFile("w", dir=folder, prefix=".credential.", encoding="utf-8") as file:  # mode 0600
        file.write(f"username={address.user}\npassword={address.password}\n")
        file.flush()
        quoted = "'" + file.name.replace("'", "'\\''") + "'"
        key = f"credential.{server}.helper"
        yield ("-c", f"{key}=", "-c", f"{key}=!f() {{ cat {quoted}; }}; f")


@dataclass(frozen=True)
class WorkTree:
    """What Git says about a folder.

    Attributes
    ----------
    commit : str or None
        None before the first commit.
    dirty : tuple of str
        Files that differ from the commit or are not tracked, relative to the folder.
    ignored : frozenset of str
        Files, and folders with a slash at the end, that Git ignores.
    """

    commit: str | None
    dirty: tuple[str, ...]
    ignored: frozenset[str]


def inspect(folder: Path) -> WorkTree | None:
    """Return what Git says about a folder, None where it lies in no work tree or is itself ignored.

    Raises
    ------
    Unsupported
        There is no `git` on this machine.
    Failed
        Git refuses to look, for instance because the repository belongs to another user.
    """
    run = _Git(folder)
    try:
        if run("rev-parse", "--is-inside-work-tree").strip() != "true":
            return None
    except _GitError as error:
        if "not a git repository" in str(error):
            return None
        raise Failed(f"{folder}: Git says: {error}") from None
    with contextlib.suppress(_GitError):
        run("check-ignore", "--quiet", ".")
        return None
    try:
        prefix = run("rev-parse", "--show-prefix").removesuffix("\n")
        status = run("status", "--porcelain=v1", "-z", "--untracked-files=all", "--no-renames", "--", ".")
        ignored = run("ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--directory")
        commit = None
        with contextlib.suppress(_GitError):  # no commit yet
            commit = run("rev-parse", "--verify", "--quiet", "HEAD").strip()
    except _GitError as error:
        raise Failed(f"{folder}: Git says: {error}") from None
    dirty = sorted(entry[3:].removeprefix(prefix) for entry in status.split("\0") if entry)
    return WorkTree(commit, tuple(dirty), frozenset(path for path in ignored.split("\0") if path))


class _GitError(Exception):
    """What `git` wrote when it failed, without credentials."""


class _Git:
    """Runs `git` in a folder; it never asks a terminal, and never outlives us by a question."""

    def __init__(self, folder: Path, options: Sequence[str] = ()) -> None:
        self._folder = folder
        self._options = tuple(options)

    def __call__(self, *arguments: str) -> str:
        environment = {name: value for name, value in os.environ.items() if name not in _MISLEADING}
        # A session of its own has no terminal: ssh fails with a message instead of asking for a passphrase.
        environment |= {
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "",
            "SSH_ASKPASS": "",
            "SSH_ASKPASS_REQUIRE": "never",
        }
        environment |= {"LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"}
        stalled = ("-c", "http.lowSpeedLimit=1", "-c", "http.lowSpeedTime=60")
        try:
            process = subprocess.Popen(
                ["git", *stalled, *self._options, *arguments],
                cwd=self._folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except FileNotFoundError:
            raise Unsupported(
                "git is not installed; install it (apt install git, dnf install git), or give a directory instead."
            ) from None
        with process:
            try:
                out, err = process.communicate()
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
                raise
        if process.returncode != 0:
            raise _GitError(_essence(os.fsdecode(err)) or f"exit code {process.returncode}")
        return os.fsdecode(out)


def _essence(said: str) -> str:
    """Return what Git said in one line, without credentials, warnings and advice."""
    lines = [line.strip() for line in hide_credentials(said).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(("warning:", "hint:")))
