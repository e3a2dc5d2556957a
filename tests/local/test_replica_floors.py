"""The harness on the oldest and the newest interpreter and packages that it promises to run on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from uv import find_uv_bin

UV = find_uv_bin()
FLOORS = {
    "3.8": ["flask==2.2.*", "werkzeug==2.2.*", "prometheus-client==0.8.*", "six", "pyuwsgi"],
    "3.13": ["flask", "prometheus-client", "six", "pyuwsgi"],
}
#: A cut through test_replica.py: one behaviour of each kind.
CHOSEN = "envelope or needs or token_opens or refused or overdue or recycled_by_count or metrics or while_loading"


@pytest.mark.slow
@pytest.mark.parametrize("version", FLOORS)
def test_replicas_behave_the_same_on(version: str, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    made = subprocess.run(
        [UV, "venv", "--quiet", "--no-python-downloads", "--python", interpreter(version), str(environment)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    python = str(environment / "bin" / "python")
    installed = subprocess.run(
        [UV, "pip", "install", "--quiet", "--python", python, *FLOORS[version]], capture_output=True, text=True
    )
    if installed.returncode:
        pytest.skip(f"the packages for {version} are not to be had: {installed.stderr[-300:]}")
    tests = Path(__file__).with_name("test_replica.py")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests), "-k", CHOSEN],
        env={**os.environ, "REPLICA_PYTHON": python}, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-5000:]


def interpreter(version: str) -> str:
    """Find an interpreter of a version; uv itself does not look into pyenv's folder."""
    pyenv = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))
    if pyenv:
        return str(pyenv[-1])
    found = subprocess.run([UV, "python", "find", "--no-python-downloads", version], capture_output=True, text=True)
    if found.returncode:
        pytest.skip(f"no interpreter of Python {version} on this machine")
    return found.stdout.strip()
