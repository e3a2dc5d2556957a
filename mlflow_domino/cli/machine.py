"""`mlflow-domino up`, `down`, `status`, `check`, `render` and `prune`: the data plane and this machine."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlflow_domino.cli.endpoint import described, parse_config, settings_option, show_endpoint, write_endpoints
from mlflow_domino.cli.output import Output, command, endpoint_argument
from mlflow_domino.errors import Unavailable, Unsupported

if TYPE_CHECKING:
    from mlflow_domino.controller import Controller

__all__ = ["add_to"]

_POLL_S = 0.1


def add_to(root: click.Group) -> None:
    for name, function in _COMMANDS.items():
        function(root, name)


def _up(root: click.Group, name: str) -> None:
    @command(root, name)
    @click.option("--enable", is_flag=True, help="Also at each login from now on, by a systemd user unit.")
    @click.option("--no-wait", is_flag=True, help="Return before every endpoint answers.")
    def up(out: Output, *, enable: bool, no_wait: bool) -> None:
        """Start the data plane, with every endpoint as it was."""
        from mlflow_domino import unit

        controller = out.open()
        if enable and controller.plane.name != "local":
            raise Unsupported(
                "--enable is for the local data plane: Docker brings its containers back by itself, and "
                f"`mlflow-domino -t domino:/{controller.plane.name} up` their gateway."
            )
        if enable:
            hint = unit.enable(controller.home)
            out.say(f"{unit.name_of(controller.home)} is enabled. {hint}")
            if not controller.plane.alive():
                unit.start(controller.home)
        started = controller.up()
        if not no_wait:
            _await_endpoints(controller, out)
        remark = controller.plane.remark()
        if remark:
            out.say(f"note: {remark}")
        state = "is up" if started else "was up already"
        out.answer(
            f"The data plane {controller.plane.name} {state}, at {controller.plane.url()}.",
            {"data_plane": controller.plane.name, "url": controller.plane.url(), "started": started},
        )


def _await_endpoints(controller: Controller, out: Output) -> None:
    """Wait until nothing starts any more, each endpoint as long as its own settings let it."""
    from mlflow_domino.models import Status

    began, said = time.monotonic(), False
    while True:
        starting = [v for v in controller.endpoints() if v.status in (Status.STARTING, Status.UNREACHABLE)]
        limit = max((v.endpoint.settings.ready_within_s for v in starting), default=0.0)
        if not starting or time.monotonic() - began > limit:
            return
        if not said:
            out.say(f"starting {', '.join(v.endpoint.name for v in starting)} …")
            said = True
        time.sleep(_POLL_S)


def _down(root: click.Group, name: str) -> None:
    @command(root, name)
    @click.option("--disable", is_flag=True, help="Also remove the systemd user unit that `up --enable` wrote.")
    def down(out: Output, *, disable: bool) -> None:
        """Stop every endpoint and the gateway; `up` brings them back as they were."""
        from mlflow_domino import unit

        controller = out.open(recover=False)
        if disable and not unit.disable(controller.home):
            out.say("There is no unit to remove.")
        if controller.plane.alive():
            out.say("finishing the requests in flight, ending the replicas …")
        controller.down()
        out.answer(
            f"The data plane {controller.plane.name} is down.", {"data_plane": controller.plane.name, "down": True}
        )


def _status(root: click.Group, name: str) -> None:
    @command(root, name)
    @endpoint_argument(required=False)
    def status(out: Output, endpoint: str | None) -> None:
        """Tell what runs, and why the rest does not; of all endpoints, or of one with its log's end."""
        controller = out.open()
        if endpoint is not None:
            show_endpoint(out, controller, controller.endpoint(endpoint))
            return
        views = controller.endpoints()
        plane = _plane(controller)
        if out.as_json:
            home = str(controller.home.root)
            out.document({"data_plane": plane, "home": home, "endpoints": described(controller, views)})
            return
        state = f"up, at {plane['url']}" if plane["up"] else plane["reason"]
        out.pairs(
            [
                ("Data plane", f"{controller.plane.name}: {state}"),
                ("Note", plane["note"]),
                ("Home", controller.home.root),
            ]
        )
        click.echo()
        write_endpoints(out, controller, views)


def _plane(controller: Controller) -> dict[str, Any]:
    """Return what there is to say of the data plane itself."""
    told = {"name": controller.plane.name, "up": False, "url": None, "reason": controller.sight.silence(), "note": ""}
    if told["reason"]:
        return told
    told["up"] = controller.plane.alive()
    with contextlib.suppress(Unavailable):
        told["url"] = controller.plane.url()
    if told["up"]:
        told["note"] = controller.plane.remark()
    else:
        command = "mlflow-domino" + ("" if told["name"] == "local" else f" -t domino:/{told['name']}")
        told["reason"] = controller.plane.obstacle() or f"down; `{command} up` starts it"
    return told


def _check(root: click.Group, name: str) -> None:
    @command(root, name)
    @click.option("--data-plane", metavar="NAME", help="Look at this data plane, as -t domino:/NAME does.")
    def check(out: Output, data_plane: str | None) -> int:
        """Tell what is missing on this machine or data plane, and how to get it; exit code 1 if anything is."""
        from mlflow_domino.check import Verdict, findings
        from mlflow_domino.data_planes.declaration import declared
        from mlflow_domino.home import Home

        home = Home.find()
        target = f"domino:/{data_plane}" if data_plane else out.target
        found = list(findings(home, declared(target, home)))
        rows = [(f.verdict.value, f.what, f.found, f.way_out) for f in found]
        documents = [
            {"what": f.what, "verdict": f.verdict.value, "found": f.found, "way_out": f.way_out} for f in found
        ]
        out.table(("", "WHAT", "FOUND", "WAY OUT"), rows, documents, "")
        return int(any(f.verdict is Verdict.MISSING for f in found))


def _render(root: click.Group, name: str) -> None:
    @command(root, name)
    @endpoint_argument(metavar="NAME")
    @click.option("-m", "--model-uri", metavar="URI", help="Model or project; by default that of the endpoint.")
    @settings_option
    @click.option("-o", "--output", "folder", required=True, type=click.Path(path_type=Path), help="A new folder.")
    @click.option(
        "--image", default="", metavar="IMAGE", help="Kubernetes: of the version, as `endpoint export` pushed it."
    )
    @click.option("--no-context", is_flag=True, help="Only what runs, not what images are built of.")
    def render(
        out: Output, endpoint: str, model_uri: str | None, config: tuple[str, ...], folder: Path, image: str,
        *, no_context: bool,
    ) -> None:  # fmt: skip
        """Write what would be built and run into a folder, without secrets; nothing that runs is changed.

        For containers, packages are resolved and laid out as for a build: `sh FOLDER/dockerfiles/build.sh` builds the
        image anywhere. With --image or --no-context they are not.
        """
        from mlflow_domino.render import write

        files = write(
            out.open(recover=False), folder, endpoint, model_uri, parse_config(config), image,
            context=not no_context, log=out.say,
        )  # fmt: skip
        out.answer("\n".join(str(folder / file) for file in files), {"folder": str(folder), "files": files})


def _prune(root: click.Group, name: str) -> None:
    @command(root, name)
    @click.option("--yes", is_flag=True, help="Remove it; without this it is only shown.")
    @click.option(
        "--keep", type=click.IntRange(min=1), metavar="N", help="Versions an endpoint keeps; default: keep_versions."
    )
    @click.option("--older-than", default="1d", show_default=True, metavar="TIME", help="Age of logs and environments.")
    def prune(out: Output, *, yes: bool, keep: int | None, older_than: str) -> None:
        """Show what old versions, unused environments and old logs take, and with --yes remove it."""
        from mlflow_domino import prune as pruning
        from mlflow_domino.logs import parse_duration

        controller = out.open()
        plan = pruning.plan(controller, keep=keep, older_than_s=parse_duration(older_than))
        rows = [(item.kind, item.name, pruning.readable(item.size), item.why) for item in plan]
        documents = [{"kind": i.kind, "name": i.name, "bytes": i.size, "why": i.why, "removed": yes} for i in plan]
        if yes:
            pruning.carry_out(controller, plan, out.say)
        out.table(
            ("KIND", "NAME", "SIZE", "WHY"), rows, documents, f"There is nothing to remove, older than {older_than}."
        )
        if plan and not out.as_json:
            total = pruning.readable(sum(item.size for item in plan))
            there = "" if controller.plane.name == "local" else f" -t domino:/{controller.plane.name}"
            again = f"mlflow-domino prune{there} --yes{f' --keep {keep}' if keep else ''} --older-than {older_than}"
            click.echo(f"\n{total} {'removed' if yes else f'can be removed: {again}'}")


_COMMANDS = {"up": _up, "down": _down, "status": _status, "check": _check, "render": _render, "prune": _prune}
