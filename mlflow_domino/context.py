"""The context of an image's build: a tar archive whose members' content and names decide every byte of it."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

__all__ = ["Entry", "context", "entries"]


@dataclass(frozen=True)
class Entry:
    """One member of a context: a file of this machine, content that we made, a link, or a folder with nothing in it."""

    name: str
    path: Path | None = None
    content: bytes = b""
    link: str = ""
    program: bool = False
    folder: bool = False


def entries(root: Path, into: str, *, byte_code: bool = False) -> Iterator[Entry]:
    """Yield what a folder holds, as members of a context below `into`.

    Parameters
    ----------
    byte_code : bool
        Whether byte code goes with it; what Python keeps on this machine is none for an image.
    """
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if byte_code or name != "__pycache__")
        if not folders and not files and Path(folder) != root:
            yield Entry(f"{into}/{Path(folder).relative_to(root)}", folder=True)
        for name in sorted([*files, *(n for n in folders if os.path.islink(os.path.join(folder, n)))]):
            path = Path(folder) / name
            member = f"{into}/{path.relative_to(root)}"
            if path.is_symlink():
                yield Entry(member, link=os.readlink(path))
            else:
                yield Entry(member, path=path, program=bool(path.stat().st_mode & stat.S_IXUSR))


def context(members: Sequence[Entry], archive: IO[bytes]) -> str:
    """Write a context as a tar archive: the same members give the same bytes. Return their SHA-256."""
    folders = sorted({str(parent) for m in members for parent in Path(m.name).parents if str(parent) != "."})
    named = {m.name: m for m in members}
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in sorted({*folders, *named}):
            _add(tar, named.get(name), name)
    archive.seek(0)
    digest = hashlib.sha256()
    while block := archive.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _add(tar: tarfile.TarFile, member: Entry | None, name: str) -> None:
    info = tarfile.TarInfo(name)
    if member is None or member.folder:
        info.type, info.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(info)
    elif member.link:
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, member.link, 0o777
        tar.addfile(info)
    else:
        info.mode = 0o755 if member.program else 0o644
        if member.path is None:
            info.size = len(member.content)
            tar.addfile(info, io.BytesIO(member.content))
        else:
            with member.path.open("rb") as file:
                info.size = os.fstat(file.fileno()).st_size
                tar.addfile(info, file)
