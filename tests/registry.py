"""A real image registry on loopback, closed to strangers where a test wants that."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from tests.conftest import eventually, free_port

__all__ = ["PASSWORD", "USER", "Registry", "registry"]

USER, PASSWORD = "tester", "s3cr3t-of-the-registry"
_HASHED = "$2y$05$abcdefghijklmnopqrstuuESR8NcBixma.YNB0QOjgIcNXyVLnPmi"


@dataclass(frozen=True)
class Registry:
    """A registry that runs.

    Attributes
    ----------
    host : str
        As the first part of images' names.
    log : Path
        What it wrote.
    user : tuple of str or None
        Who may read and write.
    """

    host: str
    log: Path
    user: tuple[str, str] | None = None

    def digest(self, repository: str, tag: str) -> str:
        """Return the digest of an image that is there, empty where there is none."""
        accept = "application/vnd.docker.distribution.manifest.v2+json"
        url = f"http://{self.host}/v2/{repository}/manifests/{tag}"
        answer = requests.head(url, headers={"Accept": accept}, auth=self.user, timeout=5)
        return answer.headers.get("Docker-Content-Digest", "") if answer.ok else ""


@contextlib.contextmanager
def registry(folder: Path, *, closed: bool = False) -> Iterator[Registry]:
    """Run a registry, whose images are in a folder, until the block ends."""
    program = shutil.which("docker-registry") or shutil.which("registry")
    if program is None:
        pytest.skip("no registry program: apt install docker-registry")
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    (folder / "htpasswd").write_text(f"{USER}:{_HASHED}\n")
    settings = [
        "version: 0.1",
        f"storage: {{filesystem: {{rootdirectory: {folder / 'data'}}}, delete: {{enabled: true}}}}",
        f'http: {{addr: "127.0.0.1:{port}"}}',
        *([f"auth: {{htpasswd: {{realm: tests, path: {folder / 'htpasswd'}}}}}"] if closed else []),
    ]
    (folder / "config.yml").write_text("\n".join(settings) + "\n")
    environment = {"PATH": os.environ["PATH"], "OTEL_TRACES_EXPORTER": "none"}
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(
            [program, "serve", folder / "config.yml"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
        ) as process,
    ):
        try:
            eventually(lambda: _answers(port))
            user = (USER, PASSWORD) if closed else None
            yield Registry(f"localhost:{port}", folder / "log", user)
        finally:
            process.terminate()


def _answers(port: int) -> bool:
    with contextlib.suppress(requests.RequestException):
        return requests.get(f"http://127.0.0.1:{port}/v2/", timeout=2).status_code in (200, 401)
    return False
