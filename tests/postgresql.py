"""A PostgreSQL of the tests' own: Debian's, in a folder and on a port of its own."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import free_port

_QUIET: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT}


class PostgreSQL:
    """A server that can be stopped and started.

    Parameters
    ----------
    programs : Path
        Folder of its programs.
    host : str
        Address on which it listens; beyond the loopback it wants the password.
    """

    def __init__(self, programs: Path, host: str = "127.0.0.1") -> None:
        self._programs = programs
        self.host = host
        self.password = secrets.token_hex(16)
        self.folder = Path(tempfile.mkdtemp(prefix="domino-postgresql-", dir="/tmp"))
        self.port = free_port()
        self._user = "postgres" if os.getuid() == 0 else None  # it refuses to run as root
        if self._user:
            shutil.chown(self.folder, self._user, self._user)
        (self.folder / "password").write_text(self.password)
        self._run(
            "initdb", "-D", str(self.folder / "data"), "-U", "domino", "--auth=trust", "-E", "UTF8", "--locale=C",
            "--pwfile", str(self.folder / "password"),
        )  # fmt: skip
        with (self.folder / "data" / "pg_hba.conf").open("a") as rules:
            rules.write("host all all all scram-sha-256\n")

    @property
    def url(self) -> str:
        return f"postgresql://domino:{self.password}@{self.host}:{self.port}/postgres"

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses={self.host}"
        self._run(
            "pg_ctl",
            "-D",
            str(self.folder / "data"),
            "-w",
            "-t",
            "60",
            "-l",
            str(self.folder / "log"),
            "-o",
            options,
            "start",
        )

    def stop(self, mode: str = "immediate") -> None:
        """Stop it; `immediate` is what a crash is like."""
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-w", "-m", mode, "stop", check=False)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str, check: bool = True) -> None:
        environment = {"PATH": os.defpath, "LC_ALL": "C"}
        subprocess.run(
            [str(self._programs / program), *arguments], check=check, cwd="/", env=environment, user=self._user, timeout=120, **_QUIET
        )  # fmt: skip


def postgresql(host: str = "127.0.0.1") -> PostgreSQL:
    """Return a server that runs and listens on an address; skip where there can be none."""
    programs = _programs()
    if programs is None and os.getuid() == 0 and shutil.which("apt-get"):
        for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", "postgresql"]):
            subprocess.run(command, timeout=600, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, **_QUIET)
        programs = _programs()
    if programs is None:
        pytest.skip("no PostgreSQL on this machine: Debian's package postgresql has it")
    server = PostgreSQL(programs, host)
    server.start()
    return server


def _programs() -> Path | None:
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name.split(".")[0]))
    found = shutil.which("pg_ctl")
    return folders[-1] if folders else Path(found).parent if found else None
