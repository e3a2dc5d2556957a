"""The systemd user unit of `up --enable`; systemctl is a script that writes down what it was asked."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from mlflow_domino import unit
from mlflow_domino.errors import Failed, Unsupported
from mlflow_domino.home import Home


@pytest.fixture
def home(tmp_path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def systemctl(tmp_path, monkeypatch):
    """Make `systemctl` a program that notes its arguments and ends as the file `code` says."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "systemctl"
    asked = tmp_path / "asked"
    program.write_text(
        f'#!/bin/sh\necho "$*" >> {asked}\ncase "$*" in *"$(cat {tmp_path}/fails 2>/dev/null || echo nothing)"*) '
        "echo trouble >&2; exit 1;; esac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return lambda: asked.read_text().splitlines()


def settings(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def test_the_unit_starts_and_ends_the_home(home):
    values = settings(unit.text_of(home, environment={"PATH": "/opt/x:/bin"}))
    assert shlex.split(values["ExecStart"][0]) == [sys.executable, "-m", "mlflow_domino", "up", "--no-wait"]
    assert shlex.split(values["ExecStop"][0]) == [sys.executable, "-m", "mlflow_domino", "down"]
    assert values["Environment"] == [f'"MLFLOW_DOMINO_HOME={home.root}"', '"PATH=/opt/x:/bin"']
    assert values["PIDFile"] == [str(home.run / "supervisor.pid")]
    assert values["Restart"] == ["on-failure"]


def test_what_systemd_would_interpret_is_escaped():
    text = unit.text_of(Home(Path('/tmp/100% "x"\\y')), environment={"PATH": "/bin"})
    assert 'Environment="MLFLOW_DOMINO_HOME=/tmp/100%% \\"x\\"\\\\y"' in text


def test_each_home_has_a_unit_of_its_own(home, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert unit.name_of(Home(tmp_path / ".mlflow-domino")) == "mlflow-domino.service"
    assert unit.name_of(home) != unit.name_of(Home(tmp_path / "other")) != "mlflow-domino.service"


def test_the_unit_is_written_and_enabled(home, systemctl, tmp_path):
    assert "enable-linger" in unit.enable(home)
    name = unit.name_of(home)
    assert (tmp_path / "config/systemd/user" / name).read_text() == unit.text_of(home)
    assert systemctl() == ["--user show-environment", "--user daemon-reload", f"--user enable {name}"]


def test_the_unit_is_disabled_and_removed(home, systemctl, tmp_path):
    assert unit.disable(home) is False
    unit.enable(home)
    assert unit.disable(home) is True
    assert list((tmp_path / "config/systemd/user").iterdir()) == []
    assert f"--user disable {unit.name_of(home)}" in systemctl()


def test_without_systemd_nothing_is_written_and_the_way_out_is_told(home, systemctl, tmp_path, monkeypatch):
    (tmp_path / "fails").write_text("show-environment")
    with pytest.raises(Unsupported, match=r"trouble\. Without systemd, run `mlflow-domino up` at boot"):
        unit.enable(home)
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    with pytest.raises(Unsupported, match="@reboot"):
        unit.enable(home)
    assert not (tmp_path / "config").exists()


def test_what_systemctl_says_is_passed_on(home, systemctl, tmp_path):
    (tmp_path / "fails").write_text("daemon-reload")
    with pytest.raises(Failed, match="daemon-reload: trouble"):
        unit.enable(home)
