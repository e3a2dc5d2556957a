from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from mlflow_domino.errors import EnvironmentFailed
from mlflow_domino.interpreter import Search, find, first_there

OWN = f"{sys.version_info[0]}.{sys.version_info[1]}"
FULL = ".".join(map(str, sys.version_info[:3]))


def pretend(path: Path, version: str, *, code: int = 0) -> Path:
    """Write a program that answers as a Python of that version would."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho {path}\necho {version}\necho cpython-{version}-linux-x86_64\nexit {code}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def search(tmp_path: Path) -> Search:
    """A machine without any Python."""
    return Search({"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path)}, own=None)


def test_this_process_has_a_python_of_its_own_version() -> None:
    interpreter, notes = find(OWN)
    assert interpreter.version.startswith(OWN + ".")
    assert notes == ()
    assert os.access(interpreter.path, os.X_OK)


def test_another_patch_level_is_used_and_said(search: Search, tmp_path: Path) -> None:
    pretend(tmp_path / "bin" / "python3.10", "3.10.9")
    interpreter, notes = find("3.10.2", search=search)
    assert interpreter.path == tmp_path / "bin" / "python3.10"
    assert notes == ("Python 3.10.2 is wanted, 3.10.9 is used",)


@pytest.mark.parametrize("folder", [".pyenv/versions/3.10.2", ".local/share/uv/python/cpython-3.10.2-linux-x86_64-gnu"])
def test_the_exact_version_among_pyenvs_and_uvs_wins_over_path(search: Search, tmp_path: Path, folder: str) -> None:
    pretend(tmp_path / "bin" / "python3.10", "3.10.9")
    exact = pretend(tmp_path / folder / "bin" / "python3.10", "3.10.2")
    interpreter, notes = find("3.10.2", search=search)
    assert (interpreter.path, notes) == (exact, ())


def test_folders_that_variables_name_are_searched(search: Search, tmp_path: Path) -> None:
    search.environment["PYENV_ROOT"] = str(tmp_path / "other")
    named = pretend(tmp_path / "other" / "versions" / "3.12.4" / "bin" / "python3.12", "3.12.4")
    assert find("3.12", search=search)[0].path == named


def test_broken_candidates_are_passed_over(search: Search, tmp_path: Path) -> None:
    pretend(tmp_path / "bin" / "python3.10", "3.10.9", code=1)
    (tmp_path / "bin" / "python3").symlink_to(tmp_path / "gone")
    good = pretend(tmp_path / ".pyenv" / "versions" / "3.10.4" / "bin" / "python3.10", "3.10.4")
    assert find("3.10.9", search=search)[0].path == good


def test_a_program_of_another_version_is_not_believed(search: Search, tmp_path: Path) -> None:
    pretend(tmp_path / ".pyenv" / "versions" / "3.10.4" / "bin" / "python3.10", "3.11.0")
    with pytest.raises(EnvironmentFailed):
        find("3.10", search=search)


def test_a_shim_is_the_last_resort(search: Search, tmp_path: Path) -> None:
    search.environment["PATH"] = f"{tmp_path / 'shims'}:{tmp_path / 'bin'}"
    shim = pretend(tmp_path / "shims" / "python3.10", "3.10.1")
    assert find("3.10", search=search)[0].path == shim
    real = pretend(tmp_path / "bin" / "python3.10", "3.10.2")
    assert find("3.10", search=search)[0].path == real


def test_a_missing_version_is_refused_naming_those_that_are_there(search: Search, tmp_path: Path) -> None:
    pretend(tmp_path / "bin" / "python3.10", "3.10.9")
    pretend(tmp_path / ".pyenv" / "versions" / "3.13.2" / "bin" / "python3.13", "3.13.2")
    with pytest.raises(EnvironmentFailed) as caught:
        find("3.11.7", search=search)
    message = str(caught.value)
    assert "Python 3.11.7 is not on this machine" in message
    assert "There are 3.10.9, 3.13.2." in message
    assert "python_downloads=false" in message
    assert "python_version=3.13" in message


def test_a_machine_without_any_python_is_told_what_to_install(search: Search) -> None:
    with pytest.raises(EnvironmentFailed, match=r"no other either\. Install Python 3\.11"):
        find("3.11", search=search)


def test_the_first_of_some_versions_that_is_there_is_found(search: Search, tmp_path: Path) -> None:
    assert first_there(("3.12", "3.11"), search) == ""
    pretend(tmp_path / "bin" / "python3.11", "3.11.4")
    assert first_there(("3.12", "3.11", "3.10"), search) == "3.11"


def test_what_can_be_downloaded_is_used(search: Search, tmp_path: Path) -> None:
    asked = []

    def download(minor: str) -> str:
        asked.append(minor)
        pretend(tmp_path / ".local/share/uv/python/cpython-3.11.9-linux-x86_64-gnu/bin/python3.11", "3.11.9")
        return ""

    interpreter, notes = find("3.11.7", search=search, download=download)
    assert asked == ["3.11"]
    assert interpreter.version == "3.11.9"
    assert notes == ("Python 3.11.7 is wanted, 3.11.9 is used",)


def test_a_failed_download_shows_why(search: Search) -> None:
    with pytest.raises(EnvironmentFailed) as caught:
        find("3.11", search=search, download=lambda _minor: "error: dns error")
    assert "could not be downloaded" in caught.value.message
    assert caught.value.log_tail == "error: dns error"


@pytest.mark.parametrize("wanted", ["2.7.18", "3.6", "3.7.1"])
def test_pythons_older_than_the_harness_are_refused(wanted: str) -> None:
    with pytest.raises(EnvironmentFailed, match=r"older than 3\.8"):
        find(wanted)


@pytest.mark.parametrize("wanted", ["", "latest", "3", "three.eleven"])
def test_what_is_no_version_is_refused(wanted: str) -> None:
    with pytest.raises(EnvironmentFailed, match="python_version="):
        find(wanted)
