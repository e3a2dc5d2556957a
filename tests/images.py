"""Environment images of all sorts, made by whatever builds images here."""

from __future__ import annotations

import io

from mlflow_domino.builder import Builder
from mlflow_domino.context import Entry, context

__all__ = ["BASE", "SITE", "Made", "installed"]

BASE = "python:3.11-slim-bookworm"
SITE = "/usr/local/lib/python3.11/dist-packages"


class Made:
    """Images that a test makes, removed with it."""

    def __init__(self, builder: Builder) -> None:
        self._builder = builder
        self.names: list[str] = []

    def __call__(self, name: str, recipe: str, **files: str) -> str:
        tag = f"mlflow-domino-test/{name}:1"
        members = [Entry("Dockerfile", content=recipe.encode())]
        members += [Entry(path.replace("__", "/"), content=text.encode()) for path, text in files.items()]
        archive = io.BytesIO()
        context(members, archive)
        archive.seek(0)
        self._builder.build(archive, tag, arguments={}, log=lambda _line: None)
        self.names.append(tag)
        return tag

    def clean(self) -> None:
        for name in self.names:
            self._builder.remove_image(name)


def installed(*packages: str) -> str:
    """Return lines of a Dockerfile after which packages count as installed."""
    lines = []
    for package in packages:
        name, _, version = package.partition("==")
        folder = f"{SITE}/{name}-{version}.dist-info"
        lines.append(
            f"RUN mkdir -p {folder} && printf 'Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n' "
            f">{folder}/METADATA"
        )
    return "\n".join(lines)
