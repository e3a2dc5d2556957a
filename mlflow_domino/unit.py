"""The systemd user unit that brings the data plane up at login, or at boot where the user lingers."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from mlflow_domino.errors import Failed, Unsupported
from mlflow_domino.home import Home, write_text

__all__ = ["disable", "enable", "name_of", "start", "text_of"]

_TEXT = """\
[Unit]
Description=Endpoints of mlflow-domino in {described}
After=network.target

[Service]
Type=forking
PIDFile={pid_file}
{environment}
ExecStart={program} up --no-wait
ExecStop={program} down
# `down` ends the supervisor with exit code 0; a supervisor that was killed is started again.
Restart=on-failure
RestartSec=1
TimeoutStartSec=120
# Requests in flight are finished first.
TimeoutStopSec=120
KillMode=mixed

[Install]
WantedBy=default.target
"""


def name_of(home: Home) -> str:
    """Return the unit's name: each home has its own."""
    if home.root == Path.home() / ".mlflow-domino":
        return "mlflow-domino.service"
    return f"mlflow-domino-{hashlib.sha256(os.fsencode(home.root)).hexdigest()[:8]}.service"


def text_of(home: Home, *, environment: Mapping[str, str] | None = None) -> str:
    """Return the unit's file; `environment` is the caller's, of which PATH and TMPDIR are kept."""
    given = os.environ if environment is None else environment
    variables = {"MLFLOW_DOMINO_HOME": str(home.root), "PATH": given.get("PATH", os.defpath)}
    if "TMPDIR" in given:  # where builds have their folders
        variables["TMPDIR"] = given["TMPDIR"]
    return _TEXT.format(
        described=_escaped(str(home.root)),
        pid_file=_escaped(str(home.run / "supervisor.pid")),
        environment="\n".join(f"Environment={_quoted(f'{key}={value}')}" for key, value in variables.items()),
        program=_quoted(sys.executable).replace("$", "$$") + " -m mlflow_domino",
    )


def enable(home: Home) -> str:
    """Write the unit and enable it; return what else a person should do.

    Raises
    ------
    Unsupported
        There is no systemd that runs units of this user.
    """
    _systemctl("show-environment")
    write_text(_folder() / name_of(home), text_of(home), mode=0o644)
    _systemctl("daemon-reload")
    _systemctl("enable", name_of(home))
    return "It starts with your login; `loginctl enable-linger` makes that the boot."


def start(home: Home) -> None:
    """Have systemd start the unit."""
    _systemctl("start", name_of(home))


def disable(home: Home) -> bool:
    """Remove the unit; false when there is none."""
    path = _folder() / name_of(home)
    if not path.exists():
        return False
    _systemctl("disable", name_of(home))
    path.unlink()
    _systemctl("daemon-reload")
    return True


def _folder() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user"


def _systemctl(*arguments: str) -> None:
    program = shutil.which("systemctl")
    if program is None:
        raise Unsupported(
            "There is no systemctl here: have whatever starts programs on this machine run `mlflow-domino up` at boot, "
            "for instance a line `@reboot` in `crontab -e`."
        )
    try:
        done = subprocess.run([program, "--user", *arguments], capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        raise Failed(f"systemctl --user {' '.join(arguments)} does not answer.") from None
    if done.returncode != 0:
        said = done.stderr.strip() or f"exit code {done.returncode}"
        kind = Unsupported if arguments == ("show-environment",) else Failed
        raise kind(f"systemctl --user {' '.join(arguments)}: {said}. Without systemd, run `mlflow-domino up` at boot.")


def _escaped(text: str) -> str:
    """`%` begins a specifier in a unit's values."""
    return text.replace("%", "%%")


def _quoted(text: str) -> str:
    return '"' + _escaped(text).replace("\\", "\\\\").replace('"', '\\"') + '"'
