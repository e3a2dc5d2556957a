"""Git repositories that become folders of a project: the setting `git_repos`."""

from __future__ import annotations

import itertools
import posixpath
import re
import urllib.parse
from typing import Any

from mlflow_domino.parsers import listing

__all__ = ["git_repos", "parted"]

_ITEM = re.compile(
    r"(?:(?P<folder>\w[\w.-]*(?:/\w[\w.-]*)*)=)?(?P<url>(?:git\+)?(?P<scheme>https?|ssh|file)://[^\s\x00-\x1f,]+)"
)
#: Of a URL's user and password: references to variables, and the user's name where the password is one.
_HIDDEN = re.compile(r"([\w.~-]+:)?\$\{[A-Z0-9_]+\}|\$\{[A-Z0-9_]+\}:\$\{[A-Z0-9_]+\}")
_MOST = 16


def git_repos(value: Any) -> tuple[str, ...]:
    """List of [FOLDER=]URL[@REF]"""
    items: tuple[str, ...] = listing(r"[^\x00-\x1f]{1,2048}", "Git URLs")(value)
    if len(items) > _MOST:
        raise ValueError(f"at most {_MOST} repositories are wanted")
    found = tuple(map(_item, items))
    folders = sorted(parted(item)[0] for item in found)
    for first, second in itertools.pairwise(folders):
        if (second + "/").startswith(first + "/"):
            raise ValueError(f"two repositories are wanted in the folder {first}; name others: FOLDER=URL")
    return found


def parted(item: str) -> tuple[str, str]:
    """Return the folder and the URL of a repository that `git_repos` returned."""
    folder, _, url = item.partition("=")
    return folder, url


def _item(text: str) -> str:
    match = _ITEM.fullmatch(text)
    if not match:
        raise ValueError(
            "URLs of Git repositories are wanted, such as https://server/tools.git@v1.2, or lib/tools=https://… for "
            "another folder of the project than the repository's name"
        )
    user, at, _ = match["url"].partition("://")[2].partition("/")[0].rpartition("@")
    if at and match["scheme"] != "ssh" and not _HIDDEN.fullmatch(user):  # settings are shown
        raise ValueError("write ${NAME} in place of a password, and set it with -C env.NAME=… or in the shell")
    url = "git+" + match["url"].removeprefix("git+")
    folder = match["folder"] or _folder(url)
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)*", folder) or "__pycache__" in folder.split("/"):
        raise ValueError("the folder that a repository becomes is named before its URL, FOLDER=URL")
    return f"{folder}={url}"


def _folder(url: str) -> str:
    """Return the name that a repository has by its URL: that of its folder of interest, or its own."""
    address, _, fragment = url.partition("#")
    if fragment.startswith("subdirectory="):
        return posixpath.basename(urllib.parse.unquote(fragment.partition("=")[2]).rstrip("/"))
    path = address.partition("://")[2].partition("/")[2].rpartition("@")
    return posixpath.basename((path[0] or path[2]).rstrip("/")).removesuffix(".git")
