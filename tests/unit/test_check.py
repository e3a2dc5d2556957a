"""What `mlflow-domino check` finds on this machine."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from pathlib import Path

import pytest

from mlflow_domino import check
from mlflow_domino.check import Verdict, findings
from mlflow_domino.cli import main
from mlflow_domino.data_planes.declaration import Declaration
from mlflow_domino.disk import Mount, mount_of
from mlflow_domino.home import Home


def found(home: Home, **declaration) -> dict[str, check.Finding]:
    return {finding.what: finding for finding in findings(home, Declaration(**declaration))}


@pytest.fixture
def home(tmp_path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_machine_that_has_everything_is_told_so(home, port):
    everything = found(home, port=port)
    assert {f.what for f in everything.values() if f.verdict is Verdict.MISSING} == set()
    assert {
        "Python",
        "seldon-core",
        "uv",
        "Envoy",
        "uWSGI",
        "Git",
        "Home",
        "File system",
        "Disk space",
        "Gateway",
    } <= set(everything)
    assert everything["Envoy"].found.count(".") == 2
    assert everything["uv"].found[0].isdigit()


def test_a_port_that_is_taken_is_named_with_the_setting(home):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        gateway = found(home, port=other.getsockname()[1])["Gateway"]
    assert gateway.verdict is Verdict.MISSING
    assert "Address already in use" in gateway.found
    assert str(home.config) in gateway.way_out


def test_an_exposed_gateway_without_tls_is_warned_about(home, port):
    assert found(home, port=port, address="0.0.0.0")["TLS"].verdict is Verdict.WARNING
    assert "TLS" not in found(home, port=port)


def test_a_home_that_cannot_be_made_is_missing(tmp_path, port):
    (tmp_path / "file").touch()
    home = found(Home(tmp_path / "file" / "home"), port=port)["Home"]
    assert home.verdict is Verdict.MISSING
    assert "MLFLOW_DOMINO_HOME" in home.way_out


def test_a_home_that_uwsgi_would_interpret_is_missing(port):
    with tempfile.TemporaryDirectory(prefix="%x", dir="/tmp") as folder:  # a long path's run folder is elsewhere
        assert found(Home(Path(folder)), port=port)["Home"].verdict is Verdict.MISSING


def test_without_git_only_git_urls_are_lost(home, port, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    git = found(home, port=port)["Git"]
    assert git.verdict is Verdict.WARNING
    assert "git+https" in git.way_out


def test_a_program_that_does_not_run_is_missing(tmp_path):
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho no such library >&2\nexit 127\n")
    broken.chmod(0o755)
    finding = check._program("thing", lambda: str(broken), r"version (\d+)", "get it")
    assert (finding.verdict, finding.way_out) == (Verdict.MISSING, "get it")
    assert "no such library" in finding.found


@pytest.mark.parametrize(
    "kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "lustre", "glusterfs", "fuse.glusterfs"]
)
def test_network_file_systems_are_known(kind):
    assert Mount(Path("/"), kind, ()).shared


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs", "apfs", "fuseblk"])
def test_local_file_systems_are_let_through(kind):
    assert not Mount(Path("/"), kind, ()).shared


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc here")
def test_the_mount_of_a_path_is_the_longest():
    mount = mount_of(Path("/proc/self"))
    assert mount is not None
    assert (str(mount.point), mount.kind) == ("/proc", "proc")


def test_the_command_ends_with_1_when_something_is_missing(home, port, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_DOMINO_HOME", str(home.root))
    home.ensure()
    home.config.write_text(f"[data_planes.local]\nport = {port}\n")
    assert main(["check"]) == 0
    assert "ok  " in capsys.readouterr().out
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        assert main(["check", "--json"]) == 1
    documents = json.loads(capsys.readouterr().out)
    assert [d["what"] for d in documents if d["verdict"] == "missing"] == ["Gateway"]


def test_a_config_file_that_is_wrong_is_an_error(home, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_DOMINO_HOME", str(home.root))
    home.ensure()
    home.config.write_text("[data_planes.local]\nprot = 1\n")
    assert main(["check"]) == 2
    assert "did you mean 'port'" in capsys.readouterr().err
    assert os.listdir(home.root)
