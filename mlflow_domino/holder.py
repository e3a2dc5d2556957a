"""Who holds something outside of this process, such as a lock in a cluster: told from all others, and seen to be dead from here."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import socket
from pathlib import Path

import psutil

__all__ = ["dead", "holder"]


def holder() -> str:
    """Return a name for one who holds something: this process, once more."""
    return f"{socket.gethostname()}-{_machine()}-{os.getpid()}-{secrets.token_hex(4)}"


def dead(name: object) -> bool:
    """Whether a holder was a process here that has ended; another one that has its number by now counts for it."""
    found = re.fullmatch(r".*-([0-9a-f]{16})-(\d+)-[0-9a-f]{8}", str(name))
    return found is not None and found[1] == _machine() and not psutil.pid_exists(int(found[2]))


def _machine() -> str:
    """Return what tells this machine, since it was started, and this process's view of its processes from all others."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii")
        return hashlib.sha256(f"{boot}{os.readlink('/proc/self/ns/pid')}".encode()).hexdigest()[:16]
    except OSError:
        return "unknown"
