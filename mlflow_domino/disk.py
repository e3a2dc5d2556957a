"""What a folder lies on, and how much it takes."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = ["Mount", "mount_of", "size_of"]

_NETWORK = re.compile(
    r"nfs\d?|cifs|smb\d?|smbfs|9p|afs|ceph|lustre|gpfs|glusterfs|beegfs|ocfs2|gfs2|(fuse\.)?(sshfs|s3fs|gcsfuse|rclone|glusterfs)"
)


@dataclass(frozen=True)
class Mount:
    """A mounted file system, as the kernel names it."""

    point: Path
    kind: str
    options: tuple[str, ...]

    @property
    def shared(self) -> bool:
        """Whether other machines may have it too: SQLite's WAL and Unix sockets do not work there."""
        return _NETWORK.fullmatch(self.kind) is not None


def mount_of(path: Path) -> Mount | None:
    """Return the mount that a path lies on: the longest, and of those the last."""
    real = path.resolve()
    best = None
    with contextlib.suppress(OSError, psutil.Error):
        for partition in psutil.disk_partitions(all=True):
            point = Path(partition.mountpoint)
            if real.is_relative_to(point) and (best is None or len(point.parts) >= len(best.point.parts)):
                best = Mount(point, partition.fstype, tuple(partition.opts.split(",")))
    return best


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder, as the files say; what is removed meanwhile does not count."""
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total
