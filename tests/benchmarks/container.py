"""The harness's speed in a container beside that on the local data plane: same model, settings and Python version.

    python -m tests.benchmarks.container [--model iris|trees|network] [--connections 16] [--rounds 7] [--seconds 4]

The replicas themselves are compared, each on the socket by which its gateway reaches it, and both gateways; for
comparison, the container's own address too, by which a gateway in a cluster reaches a pod, and its published port, where
Docker's own proxy copies every byte. The sides take turns; a ratio is the median of the rounds' ratios. How fast an
interpreter is depends on how it was compiled, so that the local side runs on the container's very version, of the same
distribution, where this machine has that; what still differs is said. Nobody is pinned to cores, and no limit is set.
The kernel shares the cores out between control groups, and a container is one of its own: where rates and processor time
for a request tell different things, trust the latter.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import statistics
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import psutil

from mlflow_domino.controller import Controller
from mlflow_domino.data_planes.docker import DockerDataPlane
from mlflow_domino.home import Home
from mlflow_domino.models import Version
from tests.benchmarks.generator import Target
from tests.benchmarks.measure import Results, compare, scratch
from tests.benchmarks.models import MODELS, Model
from tests.benchmarks.peers import add_joining, joining
from tests.benchmarks.servers import Side, basic, domino, family
from tests.conftest import free_port, processes_of

_LOCAL, _LOCAL_GATEWAY = "local", "local, gateway"
_CONTAINER, _GATEWAY = "container", "container, gateway"
_ADDRESS, _PUBLISHED = "container, own address", "container, published port"
_BASES = {_CONTAINER: _LOCAL, _GATEWAY: _LOCAL_GATEWAY, _ADDRESS: _LOCAL, _PUBLISHED: _LOCAL}
_WANTED = 0.90


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="iris")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4)
    add_joining(parser)
    options = parser.parse_args()
    worst = float("inf")
    with scratch() as folder, domino(folder) as ours:
        model = MODELS[options.model](folder)
        for kind, settings in (("plain", {}), ("joined", joining(options))):
            settings = {"workers": options.workers, **settings}
            with _contained(folder, model, settings) as (sides, contained):
                version = contained.artifact.python_version if contained.artifact else ""
                local, gateway = ours.deploy(kind, model, **settings, python_version=version)
                here = ours.controller.find_version(kind)
                _tell_differences((ours.home, here), (Home(folder / "docker"), contained))
                print(f"\n{options.model}, {kind}, {options.connections} connections, {options.workers} workers")
                rounds = {"connections": options.connections, "rounds": options.rounds, "seconds": options.seconds}
                results = compare({_LOCAL: local, _LOCAL_GATEWAY: gateway, **sides}, **rounds)
            print(f"\n{results.table(_LOCAL)}")
            for side, base in _BASES.items():
                cpu = results.cpu_ms(side) / results.cpu_ms(base)
                print(
                    f"{side}: {_ratio(results, side):.3f} of {base}, the median of {options.rounds} rounds; "
                    f"{cpu:.3f} of its processor time for a request"
                )
            worst = min(worst, _ratio(results, _CONTAINER), _ratio(results, _GATEWAY))
            ours.controller.delete(kind)
    print(f"\nin a container at least {worst:.3f} of the local rate ({_WANTED} wanted)")
    sys.exit(0 if worst >= _WANTED else 1)


def _ratio(results: Results, side: str) -> float:
    pairs = zip(results.rounds[side], results.rounds[_BASES[side]], strict=True)
    return statistics.median(one.outcome.rate / other.outcome.rate for one, other in pairs)


def _tell_differences(*sides: tuple[Home, Version]) -> None:
    """Say in which interpreters and packages the sides differ."""
    made = [version.artifact for _home, version in sides]
    print(f"Python {', '.join(one.python_version for one in made if one)} (local, container)")
    locks = [(home.version(version.id) / "requirements.lock").read_text() for home, version in sides]
    pinned = [{line.split()[0] for line in lock.splitlines() if "==" in line.partition("#")[0]} for lock in locks]
    print(f"packages that differ: {', '.join(sorted(pinned[0] ^ pinned[1])) or 'none'}")


@contextlib.contextmanager
def _contained(folder: Path, model: Model, settings: dict[str, object]) -> Iterator[tuple[dict[str, Side], Version]]:
    """Run the model in a container; give it on its socket, by its gateway, on its own address and its published port."""
    home = Home(folder / "docker")
    home.root.mkdir(exist_ok=True)
    home.config.write_text(f"[data_planes.docker]\nport = {free_port()}\n")
    controller = Controller.open("domino:/docker", home=home, say=lambda line: print(f"  {line}", file=sys.stderr))
    plane = controller.plane
    assert isinstance(plane, DockerDataPlane)
    try:
        view, token = controller.create("contained", str(model.path), settings)
        version = controller.find_version("contained")
        (address,) = plane.addresses(version)
        (listed,) = plane.containers()
        seen = plane.engine.container(listed["Id"])
        assert seen is not None
        ((binding,),) = seen["NetworkSettings"]["Ports"].values()
        replica = Target(address, "/model", basic(token), closes=True)
        inside = dataclasses.replace(replica, address=(seen["NetworkSettings"]["IPAddress"], 8080))
        published = dataclasses.replace(replica, address=(binding["HostIp"], int(binding["HostPort"])))
        url = urllib.parse.urlsplit(view.url)
        gateway = Target((url.hostname or "", url.port or 80), url.path, replica.headers)

        def own() -> list[psutil.Process]:
            return family(seen["State"]["Pid"])

        side = Side(replica, model.domino(), b'"result":[%d]' % model.answer, own)
        sides = {
            _CONTAINER: side,
            _GATEWAY: dataclasses.replace(side, target=gateway, processes=lambda: [*own(), *processes_of(home)]),
            _ADDRESS: dataclasses.replace(side, target=inside),
            _PUBLISHED: dataclasses.replace(
                side, target=published, processes=lambda: [*own(), *_proxies(binding["HostPort"])]
            ),
        }
        yield sides, version
    finally:
        try:
            controller.delete("contained")
        finally:
            controller.down()


def _proxies(port: str) -> list[psutil.Process]:
    """Return Docker's processes that copy what goes to a published port."""
    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        words = process.info["cmdline"] or ()
        if process.info["name"] == "docker-proxy" and port in words:
            found.append(process)
    return found


if __name__ == "__main__":
    main()
