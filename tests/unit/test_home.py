"""The home's folders are its owner's alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mlflow_domino.errors import InvalidInput
from mlflow_domino.home import Home

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")

_NOBODY = 65534


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / ("long" * 20))  # so that its sockets are below the folder of temporary files
    assert not home.run.is_relative_to(home.root)
    return home


def test_a_run_folder_of_somebody_else_is_refused(home: Home) -> None:
    home.run.mkdir()
    try:
        os.chown(home.run, _NOBODY, _NOBODY)
        with pytest.raises(InvalidInput, match="belongs to another user"):
            home.ensure()
    finally:
        home.run.rmdir()


def test_somebody_elses_link_to_a_folder_of_ours_is_refused_too(home: Home, tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    home.run.symlink_to(tmp_path / "ours")
    try:
        os.lchown(home.run, _NOBODY, _NOBODY)
        with pytest.raises(InvalidInput, match="belongs to another user"):
            home.ensure()
    finally:
        home.run.unlink()
