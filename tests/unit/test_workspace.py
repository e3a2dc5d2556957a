"""Folders that builds work in."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from mlflow_domino.workspace import workspace

_YEAR_S = 365 * 86400


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def age(folder: Path) -> None:
    os.utime(folder, (0, folder.stat().st_mtime - _YEAR_S))


def test_a_workspace_ends_with_the_build(temporary: Path) -> None:
    with pytest.raises(ZeroDivisionError), workspace() as folder:
        (folder / "lock").write_text("text")
        assert folder.parent == temporary
        _ = 1 / 0
    assert list(temporary.iterdir()) == []


def test_what_a_killed_build_left_is_removed_by_a_later_one(temporary: Path) -> None:
    with workspace() as folder:
        left = folder.with_name(f"{folder.name}-left")
        (left / "deep").mkdir(parents=True)
        age(left)
        fresh = folder.with_name(f"{folder.name}-fresh")
        fresh.mkdir()
    with workspace():
        assert not left.exists()
    assert fresh.exists()


def test_a_workspace_is_left_alone_however_old_it_looks_while_its_build_runs(temporary: Path) -> None:
    with workspace() as folder:
        age(folder)
        with workspace():
            assert folder.exists()


def test_a_link_of_that_name_is_not_followed(temporary: Path) -> None:
    with workspace() as folder:
        other = temporary / "other"
        other.mkdir()
        link = folder.with_name(f"{folder.name}-link")
        link.symlink_to(other)
        os.utime(link, (0, 0), follow_symlinks=False)
    with workspace():
        assert other.exists()
