"""Serves the gateway's own application: ``python -m mlflow_domino.gateway.serve SOCKET INVENTORY``.

This process becomes uWSGI's master, which imports this module again in its worker and takes `application`.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from mlflow_domino.gateway.app import create_app, watch_certificate
from mlflow_domino.gateway.shortening import watch_logs

__all__ = ["main"]

_INVENTORY = "DOMINO_GATEWAY_INVENTORY"
#: Callers who are answered at once. Each waits for a disk most of the time, and for the same turn of it as others.
_THREADS = 32
_BACKLOG = 64


def main(address: str, inventory: str) -> None:
    """Become the uWSGI that serves the application on a Unix socket, or on host:port."""
    import pyuwsgi  # a program in the shape of a module: it may be imported only where it is to run

    os.environ[_INVENTORY] = inventory
    os.umask(0o077)
    descriptor = _listen(address)
    options = {
        "http-socket": f"fd://{descriptor}",
        "module": __spec__.name if __spec__ is not None else __name__,
        "threads": _THREADS,
        "listen": _BACKLOG,
        "buffer-size": 65535,
        "socket-timeout": 60,
        "worker-reload-mercy": 5,
    }
    switches = ("master", "lazy-apps", "single-interpreter", "enable-threads", "need-app", "no-orphans", "die-on-term",
                "disable-logging", "ignore-sigpipe", "ignore-write-errors", "disable-write-exception")  # fmt: skip
    pyuwsgi.run([*(f"--{name}" for name in switches), *(f"--{name}={value}" for name, value in options.items())])


def _listen(address: str) -> int:
    """Bind here, not in uWSGI, which would expand what it takes for its own signs in a path."""
    import socket

    if address.startswith("/"):
        Path(address).unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(address)
    else:
        host, _, port = address.rpartition(":")
        listening = socket.create_server((host.strip("[]"), int(port)))
    listening.listen(_BACKLOG)
    listening.set_inheritable(True)
    return listening.detach()


if __name__ == "__main__":
    main(*sys.argv[1:])
elif _INVENTORY in os.environ:
    application = create_app(Path(os.environ[_INVENTORY]))
    watch_certificate(Path(os.environ[_INVENTORY]), report=lambda reason: print(reason, file=sys.stderr, flush=True))
    watch_logs()
    threading.Thread(target=application.extensions["predictions"].warm_up, daemon=True).start()
