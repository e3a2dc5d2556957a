"""`mlflow-domino gateway`: the gateway in a cluster, for whoever administers it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlflow_domino.cli.output import Group, Output, command
from mlflow_domino.errors import AlreadyExists, Unsupported

if TYPE_CHECKING:
    from mlflow_domino.data_planes.entrance import Entrance

__all__ = ["add_to"]


def add_to(root: click.Group) -> None:
    root.add_command(gateway)


@click.group(cls=Group)
def gateway() -> None:
    """The gateway of a Kubernetes data plane; the first `create` there installs it by itself."""


@command(gateway, "install")
def install(out: Output) -> None:
    """Install the gateway, or bring it in line with the data plane's declaration and this release."""
    entrance = _entrance(out.target)
    entrance.install(out.say)
    out.answer(
        f"The gateway {entrance.deployed()} takes requests at {entrance.url()}.",
        {"release": entrance.deployed(), "url": entrance.url()},
    )


@command(gateway, "status")
def status(out: Output) -> None:
    """Tell which release is installed, and whether it takes requests."""
    entrance = _entrance(out.target)
    deployed, pods = entrance.deployed(), entrance.ready()
    url = entrance.url() if deployed else ""
    if out.as_json:
        out.document(
            {"release": deployed or None, "own_release": entrance.release(), "ready": pods, "url": url or None}
        )
        return
    out.pairs(
        [
            ("Installed", deployed or "no gateway; `mlflow-domino gateway install` does it"),
            ("This release", entrance.release()),
            ("Ready pods", pods),
            ("URL", url),
        ]
    )


@command(gateway, "image")
def image(out: Output) -> None:
    """Build the gateway's image and push it to the data plane's registry; write its name."""
    name = _entrance(out.target).image(out.say)
    out.answer(name, {"image": name})


@command(gateway, "render")
@click.option("-o", "--output", "folder", required=True, type=click.Path(path_type=Path), help="A new folder.")
@click.option("--image", "name", default="", metavar="IMAGE", help="As `gateway image` wrote it.")
def render(out: Output, folder: Path, name: str) -> None:
    """Write the gateway's manifests into a folder, and do nothing."""
    files = _entrance(out.target).render(name)
    if folder.exists() and any(folder.iterdir()):
        raise AlreadyExists(f"{folder} is not empty; name a new folder.")
    for file, content in files.items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, "utf-8")
    if "HASH-OF-THE-CONTENT" in files["gateway.yaml"]:
        out.say("note: no image is named; `gateway image` makes one and writes its name, for --image")
    out.answer("\n".join(str(folder / file) for file in files), {"folder": str(folder), "files": list(files)})


@command(gateway, "uninstall")
@click.option("--force", is_flag=True, help="Also while endpoints exist, which nobody can call then.")
def uninstall(out: Output, *, force: bool) -> None:
    """Remove the gateway and everything of its own; refused while there are endpoints."""
    removed = _entrance(out.target).uninstall(force=force)
    out.answer("The gateway is removed." if removed else "There was no gateway.", {"removed": removed})


def _entrance(target: str) -> Entrance:
    from mlflow_domino.cluster import Cluster
    from mlflow_domino.data_planes.declaration import declared
    from mlflow_domino.data_planes.entrance import Entrance
    from mlflow_domino.home import Home

    home = Home.find()
    declaration = declared(target, home)
    if declaration.kind != "kubernetes":
        raise Unsupported(
            f"The gateway of the data plane {declaration.name!r} comes and goes with `mlflow-domino up` and `down`; this "
            "command is for Kubernetes: -t domino:/NAME."
        )
    home.ensure()
    return Entrance(Cluster(declaration.context, declaration.namespace), declaration, home)
