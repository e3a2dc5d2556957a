"""`mlflow deployments run-local`: an endpoint in the foreground, gone with Ctrl-C."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import click

from mlflow_domino.client import DominoDeploymentClient
from mlflow_domino.controller import Controller
from mlflow_domino.home import Home, write_text

__all__ = ["run_in_foreground"]


def run_in_foreground(name: str, model_uri: str, flavor: str | None, config: Mapping[str, Any] | None) -> None:
    """Deploy into a home of its own on a free port, serve until Ctrl-C, SIGTERM or the terminal's end; leave nothing behind.

    Built environments are shared with the user's home, so that the second run starts at once.
    """
    shared = Home.find()
    shared.ensure()
    folder = Path(tempfile.mkdtemp(prefix="mlflow-domino-"))
    home = Home(folder)
    ended = threading.Event()

    def end(_signal: int, _frame: FrameType | None) -> None:
        ended.set()
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in _ends()}
    try:
        _prepare(home, shared)
        client = DominoDeploymentClient("domino", home=home)
        client.create_deployment(name, model_uri, flavor, config)
        click.echo("Serving; Ctrl-C ends it.", err=True)
        ended.wait()
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):  # the terminal may be gone
            click.echo("ending …", err=True)
    finally:
        for number in before:
            signal.signal(number, signal.SIG_IGN)  # an impatient second Ctrl-C must not leave half of it
        try:
            _leave_nothing(home)
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _ends() -> list[signal.Signals]:
    """Return the signals that end it: only the main thread has handlers, and what `nohup` has ignored stays so."""
    if threading.current_thread() is not threading.main_thread():
        return []
    ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return [number for number in ends if signal.getsignal(number) is not signal.SIG_IGN]


def _prepare(home: Home, shared: Home) -> None:
    shared.environments.mkdir(mode=0o700, parents=True, exist_ok=True)
    home.environments.symlink_to(shared.environments)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    write_text(home.config, f"[data_planes.local]\nport = {port}\n")


def _leave_nothing(home: Home) -> None:
    """End the supervisor, whatever state it is in, and remove the home, but not the environments behind the link."""
    try:
        Controller.open(home=home, recover=False).down()
    finally:
        home.environments.unlink(missing_ok=True)
        for path in [home.root, *home.root.rglob("*")]:
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)
        shutil.rmtree(home.root, ignore_errors=True)
        shutil.rmtree(home.run, ignore_errors=True)
