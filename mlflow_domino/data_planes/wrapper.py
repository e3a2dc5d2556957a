"""Becomes a replica: what the Emperor runs for each vassal file, in place of uWSGI.

    wrapper.py RUN_FOLDER --ini NAME.ini

Reads what to run from ``RUN_FOLDER/launch/NAME.json`` (argv, environment, secrets, directory, log, replica, niceness),
since a vassal file must hold nothing that uWSGI could expand, and makes a clean environment: only what is written there, the
endpoint's own variables, and the descriptor by which a vassal talks to its Emperor. Runs isolated and without site
packages, on the standard library, so that it takes some ten milliseconds.
"""

from __future__ import annotations

import json
import os
import sys
import time

_KEPT = ("UWSGI_EMPEROR_FD", "UWSGI_EMPEROR_FD_CONFIG", "UWSGI_EMPEROR_PROXY")


def main(run: str, name: str) -> None:
    os.umask(0o077)
    with open(os.path.join(run, "launch", name + ".json"), encoding="utf-8") as file:
        launch = json.load(file)
    log = os.open(launch["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    environment = dict(launch["environment"])
    environment.update({key: os.environ[key] for key in _KEPT if key in os.environ})
    try:
        if launch.get("secrets"):
            with open(launch["secrets"], encoding="utf-8", errors="surrogateescape") as file:
                environment.update(json.load(file)["variables"])
        os.nice(launch.get("niceness", 0))
        os.chdir(launch["directory"])
        os.execve(launch["argv"][0], launch["argv"], environment)
    except OSError as error:
        _report(launch, f"the replica cannot be started: {error}")
        raise


def _report(launch: dict[str, object], reason: str) -> None:
    """Say why in the replica's status file, in the form that the harness writes it."""
    folder = launch.get("replica")
    if not isinstance(folder, str):
        return
    status = {"state": "failed", "reason": reason, "detail": "", "pid": os.getpid(), "since_ms": int(time.time() * 1000),
              "load_time_s": None, "notes": []}  # fmt: skip
    beside = os.path.join(folder, f".status.{os.getpid()}")
    with open(beside, "w", encoding="utf-8") as file:
        json.dump(status, file)
    os.replace(beside, os.path.join(folder, "status.json"))


if __name__ == "__main__":
    main(sys.argv[1], next(a for a in sys.argv[2:] if a.endswith(".ini"))[: -len(".ini")])
